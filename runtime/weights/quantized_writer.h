// Writes a quantized checkpoint: a Hugging Face-style directory with one safetensors shard for the
// embeddings and one per layer, so that peak memory is one layer. Everything is written into a
// directory beside the target (run_directory.h), each file under a temporary name, fsynced and
// renamed; the target appears in Finish. Layers that an interrupted run has written can be taken
// over. Names and config keys: quantized_format.h.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/quant_pack.h"
#include "nlohmann/json_fwd.hpp"
#include "runtime/models/model.h"
#include "runtime/weights/tensor_store.h"

namespace fewbit {

class CheckpointReader;

struct QuantizedLayer {
  quant::PackedStorage linears[kNumLinearRoles];
};

// A layer as it lies in the output; the matrices point into `store`.
struct WrittenLayer {
  TensorStore store;
  std::array<quant::PackedMatrix, kNumLinearRoles> linears;
};

// Bytes on disk, for the average-bits table.
struct QuantizedBytes {
  int64_t linear_bytes = 0;    // tiles, strip orders, outliers and their starts
  int64_t linear_weights = 0;  // rows * cols of the originals
  int64_t embedding_bytes = 0;
  int64_t embedding_weights = 0;  // head included when untied
};

// Norms that are written as float32 instead of what the source stores, by the name they have in a
// quantized checkpoint (CheckpointReader::StoredVectors).
using ReplacedVectors = std::map<std::string, std::vector<float>>;

// Thread rule: one thread.
class QuantizedWriter {
 public:
  // `source` gives config.json, norms, biases and tokenizer files and must outlive the writer.
  // INVALID_ARGUMENT when `source` is itself quantized or `embedding_bits` is neither 8 nor 16, and
  // the codes of RunDirectory::Open, which `restart` is for.
  static absl::StatusOr<std::unique_ptr<QuantizedWriter>> Create(const std::string& directory,
                                                                 const CheckpointReader& source,
                                                                 int embedding_bits,
                                                                 bool restart = false);
  // For another version of a checkpoint that is quantized already: embedding and head are copied as
  // they are stored. INVALID_ARGUMENT when `source` is not quantized.
  static absl::StatusOr<std::unique_ptr<QuantizedWriter>> CreateVersion(
      const std::string& directory, const CheckpointReader& source, bool restart);
  ~QuantizedWriter();  // without a successful Finish: as RunDirectory's

  // Where the files are until Finish, and how far the run there was when it was interrupted. The
  // writer only keeps it; a caller that finds one checks that it is of the same run.
  const std::string& partial_directory() const;
  const std::optional<nlohmann::json>& progress() const;
  absl::Status Record(const nlohmann::json& progress);

  // Embedding, final norm and untied head; 8-bit rows are rounded here. INVALID_ARGUMENT when a
  // weight is NaN or infinite. REQUIRES: `replaced` names vectors of the source, of their sizes.
  absl::Status WriteEmbeddings(const ReplacedVectors& replaced = {});

  // REQUIRES: 0 <= layer < L, not written yet, shapes of the source's layer, one choice of
  // zero-points for all; `replaced` as above.
  absl::Status WriteLayer(int layer, const QuantizedLayer& linears,
                          const ReplacedVectors& replaced = {});

  // Of the bytes of the layer's file; 64-bit FNV-1a, against damage, not against malice.
  absl::StatusOr<uint64_t> LayerChecksum(int layer) const;

  // Instead of WriteLayer, for a layer that an interrupted run wrote: checks its file and counts
  // it in. DATA_LOSS when it is not the one with this checksum, the codes of reading it; the layer
  // can then be written as if it were not there.
  absl::StatusOr<WrittenLayer> TakeOverLayer(int layer, uint64_t checksum, bool zero_points);

  // Writes config.json (the source's, with `quantization_config` = `settings` and our own keys),
  // the index and copies of the tokenizer's files. `settings` is an object with a string `method`.
  // Returns the directory that now holds a whole checkpoint and that Finish renames; files may be
  // added. REQUIRES: embeddings and every layer written, not complete yet.
  absl::StatusOr<std::string> Complete(const nlohmann::json& settings);

  // Renames the directory. REQUIRES: complete.
  absl::Status Finish();
  // Both.
  absl::Status Finish(const nlohmann::json& settings);

  const QuantizedBytes& bytes() const;

 private:
  QuantizedWriter();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fewbit
