// Where the pieces of a head lie in a KV block that has been copied to shared memory.
#pragma once

#include "kernels/kv_layout.h"

namespace fewbit::cuda {

// A head of a KV block as it lies in shared memory.
template <kv::KvType kType, int kDim>
struct BlockView {
  static constexpr bool kBytes = kType == kv::KvType::kI8;
  static constexpr int kPieces = kDim * kv::KvTypeBytes(kType) / 16;
  static constexpr int kRow = 16 * kPieces;
  static constexpr int kHalf = kv::kBlockTokens * kRow;
  static constexpr int kBlock = 2 * kHalf;  // without scales
  static constexpr int kSteps = kDim / 16;

  // Where a lane's addresses for matrix loads start: its token's row, and what is XORed with the
  // number of an even piece.
  static constexpr int kPanel = kv::DeviceBlockShape::panel_pieces(kPieces);
  struct Lane {
    int row, low;
    __device__ int At(int even_piece) const {
      return row + even_piece / kPanel * (256 * kPanel) + ((even_piece % kPanel ^ low) << 4);
    }
  };
  static __device__ Lane LaneOf(int token, int odd) {
    return {token * 16 * kPanel, odd ^ kv::DeviceBlockShape::piece_slot(kPieces, token, 0)};
  }
  // Matrices (tokens 0-7, 8-15) of a piece, then of the next piece.
  static __device__ Lane TokensFirst() {
    const int lane = threadIdx.x % 32;
    return LaneOf(lane % 16, kPieces > 1 ? lane / 16 : 0);
  }
  // Matrices (piece, next piece) of tokens 0-7, then of tokens 8-15.
  static __device__ Lane PiecesFirst() {
    const int lane = threadIdx.x % 32;
    return LaneOf(lane % 8 + 8 * (lane / 16), lane / 8 % 2);
  }
};

}  // namespace fewbit::cuda
