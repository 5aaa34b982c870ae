#include "runtime/products/tile_product.h"

#include <array>
#include <bit>
#include <dnnl.hpp>
#include <map>
#include <string>
#include <vector>

#include "scheduler/check.h"

// Of OpenMP's interface, whose header belongs to one compiler: how many threads the caller's loops
// start.
extern "C" void omp_set_num_threads(int count);

namespace fewbit {
namespace {

// All that oneDNN makes code for.
using Key = std::array<int64_t, 9>;

Key KeyOf(const TileProduct& p) {
  return {p.m,
          p.n,
          p.k,
          p.a.row_stride,
          p.a.transposed,
          p.b.row_stride,
          p.b.transposed,
          p.c_row_stride,
          std::bit_cast<int32_t>(p.beta)};
}

dnnl::memory::desc Describe(int rows, int cols, const TileOperand& operand) {
  const dnnl::memory::dims strides = operand.transposed ? dnnl::memory::dims{1, operand.row_stride}
                                                        : dnnl::memory::dims{operand.row_stride, 1};
  return {{rows, cols}, dnnl::memory::data_type::bf16, strides};
}

dnnl::matmul::primitive_desc DescribeProduct(const TileProduct& p, const dnnl::engine& engine) {
  const dnnl::memory::desc a = Describe(p.m, p.k, p.a);
  const dnnl::memory::desc b = Describe(p.k, p.n, p.b);
  const dnnl::memory::desc c({p.m, p.n}, dnnl::memory::data_type::f32,
                             dnnl::memory::dims{p.c_row_stride, 1});
  dnnl::primitive_attr attributes;
  // The library's own scratch would belong to the thread that makes the primitive.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (p.beta != 0.0f) {
    dnnl::post_ops sum;
    sum.append_sum(p.beta);
    attributes.set_post_ops(sum);
  }
#if DNNL_VERSION_MAJOR >= 3
  return {engine, a, b, c, attributes};
#else
  return {dnnl::matmul::desc(a, b, c), attributes, engine};
#endif
}

}  // namespace

bool HasBFloat16Products() {
  const auto has = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  const auto want = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
  return (has & want) == want;
}

std::string ProductsName() {
  const dnnl_version_t& version = *dnnl_version();
  return "oneDNN " + std::to_string(version.major) + "." + std::to_string(version.minor) + "." +
         std::to_string(version.patch) + ", instructions " +
         std::to_string(static_cast<unsigned>(dnnl::get_effective_cpu_isa()));
}

struct TileMultiplier::Impl {
  struct Primitive {
    dnnl::matmul::primitive_desc description;
    dnnl::matmul run;
  };

  void MultiplyFloat32(const TileProduct& p) {
    const dnnl_status_t status = dnnl_sgemm(
        p.a.transposed ? 'T' : 'N', p.b.transposed ? 'T' : 'N', p.m, p.n, p.k, p.alpha,
        static_cast<const float*>(p.a.data), p.a.row_stride, static_cast<const float*>(p.b.data),
        p.b.row_stride, p.beta, p.c, p.c_row_stride);
    FEWBIT_CHECK(status == dnnl_success)
        << "product of " << p.m << " x " << p.k << " and " << p.k << " x " << p.n;
  }

  void MultiplyBFloat16(const TileProduct& p) {
    FEWBIT_CHECK(p.alpha == 1.0f);
    auto at = primitives.find(KeyOf(p));
    if (at == primitives.end()) {
      const dnnl::matmul::primitive_desc description = DescribeProduct(p, engine);
      at = primitives.emplace(KeyOf(p), Primitive{description, dnnl::matmul(description)}).first;
    }
    const dnnl::matmul::primitive_desc& description = at->second.description;
    const dnnl::memory::desc scratch_desc = description.scratchpad_desc();
    if (scratch.size() < scratch_desc.get_size()) scratch.resize(scratch_desc.get_size());
    // oneDNN's memory objects have no const ones among them; sources are only read.
    const auto memory = [&](const dnnl::memory::desc& desc, const void* data) {
      return dnnl::memory(desc, engine, const_cast<void*>(data));
    };
    at->second.run.execute(stream,
                           {{DNNL_ARG_SRC, memory(description.src_desc(), p.a.data)},
                            {DNNL_ARG_WEIGHTS, memory(description.weights_desc(), p.b.data)},
                            {DNNL_ARG_DST, memory(description.dst_desc(), p.c)},
                            {DNNL_ARG_SCRATCHPAD, memory(scratch_desc, scratch.data())}});
    stream.wait();
  }

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<Key, Primitive> primitives;
  std::vector<uint8_t> scratch;
};

TileMultiplier::TileMultiplier() : impl_(std::make_unique<Impl>()) {}
TileMultiplier::~TileMultiplier() = default;

void TileMultiplier::Multiply(const TileProduct& product) {
  // A setting of the calling thread, which need not be that of the last call.
  omp_set_num_threads(1);
  if (product.type == TileType::kFloat32) {
    impl_->MultiplyFloat32(product);
  } else {
    impl_->MultiplyBFloat16(product);
  }
}

}  // namespace fewbit
