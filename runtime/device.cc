#include "runtime/device.h"

#include <unistd.h>

#include <charconv>
#include <optional>
#include <span>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "runtime/cpu_executor.h"
#include "runtime/cuda/cuda_executor.h"

namespace fewbit {
namespace {

constexpr char kAuto[] = "auto";
constexpr char kCpu[] = "cpu";
constexpr char kCuda[] = "cuda";

// N of "cuda:N", 0 of "cuda"; empty: not a GPU.
std::optional<int> CudaIndex(std::string_view device) {
  if (!device.starts_with(kCuda)) return std::nullopt;
  device.remove_prefix(sizeof(kCuda) - 1);
  if (device.empty()) return 0;
  if (device.front() != ':') return std::nullopt;
  int index = 0;
  const auto [end, error] =
      std::from_chars(device.data() + 1, device.data() + device.size(), index);
  if (error != std::errc() || end != device.data() + device.size() || index < 0) {
    return std::nullopt;
  }
  return index;
}

struct NamedKvType {
  const char* name;
  kv::KvType type;
};

absl::StatusOr<kv::KvType> FindKvType(const char* device, const std::string& name,
                                      std::span<const NamedKvType> known) {
  std::string names;
  for (const NamedKvType& row : known) {
    if (row.name == name) return row.type;
    absl::StrAppend(&names, names.empty() ? "" : ", ", row.name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("kv_type is ", name, ": on ", device, " it must be one of ", names));
}

int64_t PhysicalMemory() {
  return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
}

absl::StatusOr<std::unique_ptr<Executor>> CreateCpu(const Model* model,
                                                    const DeviceOptions& options) {
  static constexpr NamedKvType kTypes[] = {{"f16", kv::KvType::kF16}, {"f32", kv::KvType::kF32}};
  const auto kv_type = FindKvType(kCpu, options.kv_type, kTypes);
  if (!kv_type.ok()) return kv_type.status();
  if (options.lm_head_bits != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("lm_head_bits is ", options.lm_head_bits,
                     ": on cpu it must be 0, as the checkpoint has it"));
  }
  CpuExecutorOptions cpu;
  cpu.threads = options.threads;
  cpu.max_sequences = options.max_sequences;
  cpu.max_step_tokens = options.max_step_tokens;
  cpu.max_context = options.max_context;
  cpu.kv_bytes = options.kv_bytes > 0 ? options.kv_bytes : PhysicalMemory() / 4;
  cpu.num_blocks = options.num_blocks;
  cpu.kv_type = *kv_type;
  return CpuExecutor::Create(model, cpu);
}

absl::StatusOr<std::unique_ptr<Executor>> CreateCuda(const Model* model,
                                                     const DeviceOptions& options, int device) {
  static constexpr NamedKvType kTypes[] = {
      {"f16", kv::KvType::kF16}, {"bf16", kv::KvType::kBF16}, {"i8", kv::KvType::kI8}};
  const auto kv_type = FindKvType(kCuda, options.kv_type, kTypes);
  if (!kv_type.ok()) return kv_type.status();
  CudaOptions cuda;
  cuda.device = device;
  cuda.max_sequences = options.max_sequences;
  cuda.max_step_tokens = options.max_step_tokens;
  cuda.max_context = options.max_context;
  cuda.kv_bytes = options.kv_bytes;
  cuda.num_blocks = options.num_blocks;
  cuda.memory_utilization = options.gpu_memory_utilization;
  cuda.kv_type = *kv_type;
  cuda.lm_head_bits = options.lm_head_bits;
  return CreateCudaExecutor(model, cuda);
}

}  // namespace

absl::Status CheckDeviceName(std::string_view device) {
  if (device == kAuto || device == kCpu || CudaIndex(device)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("device is '", std::string(device), "': must be auto, cpu, cuda or cuda:N"));
}

absl::StatusOr<std::string> ResolveDevice(std::string_view device) {
  if (absl::Status status = CheckDeviceName(device); !status.ok()) return status;
  if (device == kCpu) return std::string(kCpu);
  const int index = CudaIndex(device).value_or(0);
  if (absl::Status status = CheckCudaDevice(index); !status.ok()) {
    if (device == kAuto) return std::string(kCpu);
    return absl::Status(status.code(),
                        absl::StrCat("device ", std::string(device), ": ", status.message()));
  }
  return absl::StrCat(kCuda, ":", index);
}

absl::StatusOr<std::unique_ptr<Executor>> CreateExecutor(const Model* model,
                                                         const DeviceOptions& options) {
  const absl::StatusOr<std::string> device = ResolveDevice(options.device);
  if (!device.ok()) return device.status();
  if (const std::optional<int> index = CudaIndex(*device)) {
    return CreateCuda(model, options, *index);
  }
  return CreateCpu(model, options);
}

}  // namespace fewbit
