// Strong identifiers shared by every folder above kernels/. They convert to integers only by name.
#pragma once

#include <cstdint>

namespace fewbit {

enum class RequestId : uint64_t {};
enum class TokenId : int32_t {};
enum class BlockId : int32_t {};

constexpr uint64_t ToInt(RequestId id) { return static_cast<uint64_t>(id); }
constexpr int32_t ToInt(TokenId id) { return static_cast<int32_t>(id); }
constexpr int32_t ToInt(BlockId id) { return static_cast<int32_t>(id); }

}  // namespace fewbit
