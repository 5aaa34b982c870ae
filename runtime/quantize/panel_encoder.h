// Codes with error feedback and descent. A panel of some rows goes through all tiles on one thread:
// what a tile sees of the others are products with the panel's errors, which the factored Hessian's
// and the Hessian's own rows are read for once per panel.
#pragma once

#include <span>
#include <vector>

#include "runtime/products/team_products.h"
#include "runtime/quantize/code_descent.h"
#include "runtime/quantize/error_feedback.h"
#include "runtime/quantize/hessian.h"
#include "runtime/quantize/matrix_plan.h"
#include "runtime/quantize/tile_codes.h"

namespace fewbit {

// Thread rule: Run by all ranks of a team at once, each for other panels.
class PanelEncoder {
 public:
  // h [K] in source order: the diagonal that counts where there is no error feedback. `hessian` is
  // arranged in the plan's compact order and factored by `factor`, which may be null if there is
  // neither error feedback nor `misses`: as Hessian's, given back panel by panel; empty: targets
  // are the weights. All outlive the object.
  PanelEncoder(const MatrixPlan& plan, const Matrix& matrix, std::span<const float> h,
               const HessianMatrix& hessian, const ErrorFeedback* factor, ScratchFloats* misses,
               TeamProducts* products, const LaneKernels& kernels);

  int panels() const { return panels_; }
  int panel_blocks() const { return panel_rows_ / kLanes; }  // row blocks of a panel, at most

  // Codes of the panel into `result`, everything else into kept [row_blocks][tiles].
  void Run(int rank, int panel, quant::UnpackedMatrix* result, std::vector<KeptTile>* kept);

 private:
  // What a rank works with: of the panel at hand [K channels in compact order, panel_rows], and of
  // the tile at hand [channels of the tile, panel_rows].
  struct Rank {
    std::vector<float> source;            // of a row block, as LoadRowBlock gives it
    std::vector<float> errors;            // of the panel: targets, then what the codes miss them by
    std::vector<float> terms, direction;  // of the tile
    std::vector<float> hessian;           // of the tile [channels, channels], damped
    std::vector<float> work;              // [channels of the tile][16 rows]
    TileBlock block;
    std::vector<DescentTile> tiles;  // of the panel's row blocks
  };

  int blocks_of(int panel) const;
  void LoadTargets(int number, int panel, Rank* rank) const;
  void EncodeTile(int panel, const TileRange& tile, Rank* rank, int number) const;
  void EncodeRows(const TileRange& tile, int column, DescentTile* state, Rank* rank) const;
  void DescendTile(int number, int panel, int index, quant::UnpackedMatrix* result,
                   std::vector<KeptTile>* kept, Rank* rank) const;
  void LoadHessian(const TileRange& tile, Rank* rank) const;
  void Slopes(int number, const TileRange& tile, Rank* rank) const;

  const MatrixPlan& plan_;
  const Matrix& matrix_;
  const HessianMatrix& hessian_;
  const std::span<const float> h_;
  const ErrorFeedback* const factor_;
  ScratchFloats& misses_;
  TeamProducts& products_;
  const LaneKernels& kernels_;
  const float damping_;
  const int panel_rows_;
  const int panels_;
  std::vector<Rank> ranks_;
};

}  // namespace fewbit
