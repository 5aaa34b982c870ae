// The only text of the names inside a quantized checkpoint: config keys, tensor suffixes, shapes.
// Writer and reader use it; the bytes of a packed tensor are kernels/quant_layout.h's matter.
//
// A directory in Hugging Face style whose tensors carry Llama's names for every family (fused
// matrices are stored apart). Per linear layer, e.g. model.layers.3.self_attn.q_proj:
//   .packed         U8  [row_blocks, row_block_bytes]   16-byte aligned in the file
//   .strip_order    U16 [num_positions]
//   .outlier_start  U32 [num_outlier_lists + 1]         both absent: no outliers
//   .outliers       U32 [outlier_start.back()]
//   .packed_shape   I32 [rows, cols, chunks2, chunks4]
// Embedding and untied head: .weight as in the source, or .codes U8 [V, E] and .scales F32 [V] at 8
// bits. Norms and biases as in the source.
#pragma once

namespace fewbit::quantized_format {

inline constexpr char kPacked[] = ".packed";
inline constexpr char kStripOrder[] = ".strip_order";
inline constexpr char kOutlierStart[] = ".outlier_start";
inline constexpr char kOutliers[] = ".outliers";
inline constexpr char kPackedShape[] = ".packed_shape";
inline constexpr char kCodes[] = ".codes";
inline constexpr char kScales[] = ".scales";
inline constexpr char kWeight[] = ".weight";
inline constexpr char kBias[] = ".bias";

inline constexpr int kPackedAlignment = 16;  // bytes

inline constexpr char kConfigKey[] = "quantization_config";
inline constexpr char kMethodNameKey[] = "quant_method";  // the scheme, here always kMethodName
inline constexpr char kMethodName[] = "fewbit";
inline constexpr char kLayoutVersionKey[] = "layout_version";
inline constexpr char kRecipeKey[] = "method";  // "published", "default"
inline constexpr char kZeroPointsKey[] = "zero_points";
inline constexpr char kEmbeddingBitsKey[] = "embedding_bits";
inline constexpr char kAverageBitsKey[] =
    "average_bits";  // for people; the reader computes it from the bytes

}  // namespace fewbit::quantized_format
