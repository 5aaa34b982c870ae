// The host side of the CUDA linear layers: which instance and geometry a layer gets, and how its
// tables are laid out. Runs without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "kernels/cuda/cluster_instances.h"
#include "kernels/cuda/half_instances.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/small_instances.h"
#include "kernels/cuda/wide_instances.h"
#include "tests/kernels/random_matrix.h"

namespace fewbit::cuda {
namespace {

constexpr DeviceProps kH200 = {9, 0, 132, 228 * 1024, 227 * 1024};
constexpr DeviceProps kA100 = {8, 0, 108, 164 * 1024, 163 * 1024};
constexpr DeviceProps kL4 = {8, 9, 58, 100 * 1024, 99 * 1024};

Desc DescOf(int rows, int cols, double share4, int m, bool zero_points = false) {
  const int strips = cols / 16, four = static_cast<int>(strips * share4);
  Desc d;
  d.shapes[0] = {rows, cols, (strips - four + 7) / 8, (four + 3) / 4, zero_points};
  d.m = m;
  return d;
}

void ExpectStreamFits(const Desc& d, const StreamPlan& p, const DeviceProps& device) {
  EXPECT_GE(p.tokens(), d.m);
  EXPECT_EQ(kStreamForms[p.form].consumers % p.stage_tiles, 0);
  EXPECT_GE(p.stages, 1);
  EXPECT_EQ(p.stages % (kStreamForms[p.form].consumers / p.stage_tiles), 0);
  EXPECT_LE(p.stages, kMostStages);
  EXPECT_GE(p.term_slots, 1);
  EXPECT_LE(p.blocks, device.multiprocessors);
  EXPECT_EQ(p.first_block[d.count], p.blocks);
  for (int i = 0; i < d.count; ++i) {
    const int blocks = p.first_block[i + 1] - p.first_block[i];
    EXPECT_GE(blocks, 1);
    EXPECT_LE(blocks, d.shapes[i].row_blocks());
  }
  const StreamLayout& l = p.layout;
  EXPECT_LE(l.total, device.shared_per_block);
  // Two blocks on a multiprocessor, of this kernel and of the next: one of a layer that widens and
  // one of another, but never two that widen.
  constexpr int kReserved = 1024, kUneven = 1024;
  const int half = device.shared_per_multiprocessor / 2 - kReserved;
  int rows = 0;
  for (int i = 0; i < d.count; ++i) rows += d.shapes[i].rows;
  if (rows <= d.shapes[0].cols) {
    EXPECT_EQ(p.lets_next, l.total <= half - kUneven);
  } else if (p.lets_next) {
    EXPECT_GT(l.total, half);
    EXPECT_LE(l.total, half + kUneven);
  } else {
    EXPECT_GT(l.total, half + kUneven);
  }
  EXPECT_EQ(l.stage_bytes % 16, 0);
  EXPECT_EQ(l.x % 16, 0);
  EXPECT_EQ(l.barriers % 8, 0);
  EXPECT_LT(l.terms, l.bounds);
  EXPECT_LT(l.bounds, l.entries);
  EXPECT_LE(l.entries + 4 * l.entry_capacity, l.works);
  EXPECT_LE(l.works + 16 * p.stages * p.stage_tiles, l.barriers);
}

void ExpectFits(const Desc& d, const DeviceProps& device) {
  const Plan p = Select(d, device);
  ASSERT_EQ(p.error, "") << d.shapes[0].rows << " x " << d.shapes[0].cols << " m " << d.m;
  if (p.path == Path::kStream) {
    EXPECT_GE(device.major, 9);
    return ExpectStreamFits(d, p.stream, device);
  }
  ASSERT_EQ(p.path, Path::kSmall);
  const SmallPlan& small = p.small[0];
  const Instance& in = SmallInstances()[small.instance];
  EXPECT_EQ(in.zero_points, d.shapes[0].zero_points);
  EXPECT_GE(4 * in.token_tiles, small.group_tokens);
  EXPECT_GE(small.group_tokens * small.groups, d.m);
  EXPECT_LT(small.group_tokens * (small.groups - 1), d.m);
  EXPECT_GE(small.warps, 1);
  EXPECT_LE(small.warps, in.max_warps);
  EXPECT_GE(small.blocks * small.own, d.shapes[0].row_blocks());
  EXPECT_EQ(small.own % in.row_blocks, 0);
  EXPECT_LE(small.shared_bytes, static_cast<size_t>(device.shared_per_block));
  const SharedLayout layout = LayoutShared(d.shapes[0], small);
  EXPECT_EQ(static_cast<size_t>(layout.total), small.shared_bytes);
  EXPECT_EQ(layout.terms % 16, 0);
}

// Query, key and value of different heights: the busiest block has little more than the average.
TEST(CudaSelect, BlocksOfAGroupAreSharedByBytes) {
  Desc d = DescOf(8192, 8192, 0.25, 1);
  d.count = 3;
  d.shapes[1] = DescOf(1024, 8192, 0.5, 1).shapes[0];
  d.shapes[2] = DescOf(1024, 8192, 0.1, 1).shapes[0];
  const Plan p = Select(d, kH200);
  ASSERT_EQ(p.error, "");
  ASSERT_EQ(p.path, Path::kStream);
  ExpectStreamFits(d, p.stream, kH200);
  double all = 0, most = 0;
  for (int i = 0; i < 3; ++i) {
    const int blocks = p.stream.first_block[i + 1] - p.stream.first_block[i];
    const double bytes = static_cast<double>(d.shapes[i].row_block_bytes());
    all += d.shapes[i].row_blocks() * bytes;
    most = std::max(most, (d.shapes[i].row_blocks() + blocks - 1) / blocks * bytes);
  }
  EXPECT_LT(most, 1.15 * all / kH200.multiprocessors);
}

// One token of every linear layer of a model leaves room for the blocks of the next layer.
TEST(CudaSelect, OneTokenTakesHalfAMultiprocessor) {
  for (const auto& [rows, cols] : {std::pair{12288, 4096},
                                   {4096, 4096},
                                   {22016, 4096},
                                   {4096, 11008},
                                   {57344, 8192},
                                   {8192, 28672}}) {
    const Plan p = Select(DescOf(rows, cols, 0.25, 1), kH200);
    ASSERT_EQ(p.path, Path::kStream);
    EXPECT_TRUE(p.stream.lets_next) << rows << " x " << cols << ": " << p.stream.layout.total;
    EXPECT_GE(p.stream.stages, 2);
  }
}

// With one token the layers of a model make their input themselves, and still leave room for the
// next one; where they do not, they are as if nobody had asked.
TEST(CudaSelect, FewTokensMakeTheirInput) {
  struct Case {
    int rows, cols;
    RowKind input;
    int most_tokens;  // 0: never
  };
  for (const Case& c : {Case{12288, 4096, RowKind::kNorm, 2},
                        {27648, 5120, RowKind::kNorm, 2},
                        {4096, 4096, RowKind::kRows, 2},
                        {22016, 4096, RowKind::kNorm, 2},
                        {4096, 11008, RowKind::kSiluMul, 1},
                        {57344, 8192, RowKind::kNorm, 0},
                        {8192, 28672, RowKind::kSiluMul, 0}}) {
    for (int m : {1, 2, 3, 8, 9, 64}) {
      Desc d = DescOf(c.rows, c.cols, 0.25, m);
      const Plan staged = Select(d, kH200);
      d.input = c.input;
      const Plan p = Select(d, kH200);
      ExpectFits(d, kH200);
      EXPECT_EQ(p.makes_input(), m <= c.most_tokens) << c.rows << " x " << c.cols << " m " << m;
      if (p.makes_input()) {
        EXPECT_TRUE(p.stream.lets_next);
        EXPECT_GE(p.stream.stages, 2);
      } else {
        EXPECT_EQ(p.stream.layout.total, staged.stream.layout.total);
      }
      EXPECT_FALSE(Select(d, kA100).makes_input());
    }
  }
}

// A warp that comes to every n-th row block and waits for its term slot must not take a phase of
// the slot two rounds before for the last one: they have the same parity.
TEST(CudaSelect, WarpsMeetThePhasesOfTermSlots) {
  bool several_rounds = false;
  for (int multiprocessors : {1, 7, 16, 60, 132}) {
    DeviceProps device = kH200;
    device.multiprocessors = multiprocessors;
    for (const auto& [rows, cols] :
         {std::pair{4096, 256}, {2752, 512}, {4096, 4096}, {4096, 11008}}) {
      for (int m : {1, 2, 4, 8}) {
        const Desc d = DescOf(rows, cols, 0.25, m);
        const Plan p = Select(d, device);
        ASSERT_EQ(p.error, "");
        if (p.path != Path::kStream) continue;
        const StreamForm& form = kStreamForms[p.stream.form];
        const int own = (rows / 16 + p.stream.blocks - 1) / p.stream.blocks;
        const int tiles = NumTiles(d.shapes[0]);
        for (int warps_of : {form.consumers, form.outliers / 2 * tiles}) {
          for (int warp = 0; warp < warps_of; ++warp) {
            int over = -1;  // the warp knows that this row block's terms were added up
            for (int tile = warp; tile < own * tiles; tile += warps_of) {
              const int row_block = tile / tiles, waits_for = row_block - p.stream.term_slots;
              if (waits_for < 0) continue;
              EXPECT_GE(over, waits_for - p.stream.term_slots)
                  << rows << " x " << cols << " m " << m << " on " << multiprocessors;
              over = waits_for;
              several_rounds |= waits_for >= 2 * p.stream.term_slots;
            }
          }
        }
      }
    }
  }
  EXPECT_TRUE(several_rounds);
}

TEST(CudaSelect, EveryShapeAndDeviceGetsAGeometryThatFits) {
  for (const auto& [rows, cols] : {std::pair{12288, 4096},
                                   {4096, 11008},
                                   {57344, 8192},
                                   {8192, 28672},
                                   {128256, 4096},
                                   {3, 16},
                                   {17, 1040}}) {
    for (double share4 : {0.0, 0.25, 1.0}) {
      for (int m : {1, 3, 4, 5, 8, 9, 16, 17, 63, 64}) {
        for (bool zero_points : {false, true}) {
          for (const DeviceProps& device : {kH200, kA100, kL4}) {
            ExpectFits(DescOf(rows, cols, share4, m, zero_points), device);
          }
        }
      }
    }
  }
}

// The small kernel reads all column tiles of the last quad but the last one whole.
TEST(CudaSelect, StagedTokensEndBehindWhatIsRead) {
  for (int m = 1; m <= 40; ++m) {
    const Desc d = DescOf(512, 784, 0.25, m);
    const Plan p = Select(d, kA100);
    ASSERT_EQ(p.path, Path::kSmall);
    const int tokens = p.small[0].group_tokens;
    const int column_tiles = SmallInstances()[p.small[0].instance].token_tiles;
    const size_t last_quad = p.small[0].groups * StagedGroupBytes(d.shapes[0], tokens) -
                             static_cast<size_t>(QuadBytes(tokens));
    EXPECT_GE(StagedBytes(d, p), last_quad + 8 * kColumnBytes * (column_tiles - 1)) << m;
    EXPECT_EQ(StagedBytes(d, p) % 16, 0u);
  }
}

TEST(CudaSelect, LargeBatchesAreDequantized) {
  const Plan p = Select(DescOf(4096, 4096, 0.25, kMaxSmallTokens + 1), kH200);
  EXPECT_EQ(p.error, "");
  EXPECT_EQ(p.path, Path::kDequantize);
}

TEST(CudaSelect, WideFormsFitAndCoverAllTokens) {
  DeviceProps device = kH200;
  device.wide_teams = 33;
  device.wide_clusters = 30;
  for (bool zero_points : {false, true}) {
    const auto fits = [&](const auto& forms, const auto& layout_of) {
      for (const auto& form : forms) {
        const auto layout = layout_of(form, zero_points);
        EXPECT_LE(form.residency * (layout.total + 1024), device.shared_per_multiprocessor);
        EXPECT_LE(layout.total, device.shared_per_block);
        for (int at : {layout.slices, layout.parity, layout.meta, layout.tiles}) {
          EXPECT_EQ(at % 128, 0) << form.tokens;
        }
        // Registers are dealt out anew by warpgroups of 128 threads, from what the block started
        // with.
        EXPECT_EQ(form.threads % 128, 0);
        const int granted = 65536 / (form.residency * form.threads) / 8 * 8;
        EXPECT_LE(256 * form.product_registers + (form.threads - 256) * form.other_registers,
                  form.threads * granted);
      }
    };
    fits(kWideForms, WideLayout);
    fits(kClusteredForms, ClusteredLayout);
    for (int m : {9, 16, 17, 64, 65, kMaxWideTokens}) {
      const Desc d = DescOf(4096, 11008, 0.25, m, zero_points);
      const Plan p = Select(d, device);
      ASSERT_EQ(p.error, "");
      ASSERT_EQ(p.path, Path::kWide) << m;
      EXPECT_TRUE(p.staged());
      EXPECT_GE(p.group_tokens(d, 0) * p.groups(0), m);
      EXPECT_LT(p.group_tokens(d, 0) * (p.groups(0) - 1), m);
      EXPECT_EQ(p.wide.clustered, m <= 32);
      if (p.wide.clustered) {
        EXPECT_LE(p.wide.teams, device.wide_clusters * kClusteredForms[p.wide.form].residency);
      } else {
        const WideForm& form = kWideForms[p.wide.form];
        EXPECT_LE(p.wide.teams, device.wide_teams * form.residency);
        EXPECT_GE(ExchangeBytes(device), WideExchangeBytes(form, p.wide.teams));
      }
      EXPECT_EQ(StagedBytes(d, p) % 16, 0u);
    }
  }
  Desc many = DescOf(4096, 4096, 0.25, kMaxWideTokens + 1);
  EXPECT_EQ(Select(many, device).path, Path::kDequantize);
  many.x_type = DType::kF32;  // cuBLAS takes none
  EXPECT_EQ(Select(many, device).path, Path::kWide);
}

TEST(CudaSelect, HalfFormsFitAndCoverAllTokens) {
  DeviceProps device = kH200;
  device.half_clusters = 66;
  for (bool zero_points : {false, true}) {
    for (const HalfForm& form : kHalfForms) {
      const HalfShared layout = HalfLayout(form, zero_points);
      EXPECT_LE(layout.total, device.shared_per_block);
      // The swizzle of operand B; copies; 8-byte barriers.
      EXPECT_EQ(layout.quad_bytes % (kHalfCluster * 256), 0);
      EXPECT_EQ(layout.quads % 1024, 0);
      for (int at : {layout.deltas, layout.stores, layout.tiles, layout.tile_bytes, layout.lists,
                     layout.list_bytes, layout.runs}) {
        EXPECT_EQ(at % 16, 0) << form.tokens;
      }
      EXPECT_EQ(layout.barriers % 8, 0);
      // A lane's first entry is read from there however many entries came along in front.
      EXPECT_LE(4 * (32 + 3), layout.list_bytes);
    }
    for (int m : {kLeastHalfTokens, 128, 129, 200, 256, 257, 512, 640, 768, 896, kMostHalfTokens}) {
      const Desc d = DescOf(4096, 11008, 0.25, m, zero_points);
      const Plan p = Select(d, device);
      ASSERT_EQ(p.error, "");
      ASSERT_EQ(p.path, Path::kHalf) << m;
      EXPECT_TRUE(p.staged());
      EXPECT_FALSE(p.plain());
      EXPECT_GE(p.group_tokens(d, 0) * p.groups(0), m);
      EXPECT_LT(p.group_tokens(d, 0) * (p.groups(0) - 1), m);
      EXPECT_EQ(p.group_tokens(d, 0), m <= kHalfForms[0].tokens ? 128 : 256);
      EXPECT_LE(p.half.clusters, device.half_clusters);
      EXPECT_GE(10 * p.half.clusters, 9 * device.half_clusters);
      EXPECT_GE(ExchangeBytes(device), HalfExchangeBytes(p.half.clusters));
      EXPECT_EQ(StagedBytes(d, p), p.groups(0) * HalfGroupBytes(d.shapes[0], p.half.tokens));
    }
  }
  Desc other = DescOf(4096, 4096, 0.25, 200);
  other.x_type = DType::kBF16;  // the integer kernel takes any type
  EXPECT_EQ(Select(other, kH200).path, Path::kDequantize);
  EXPECT_NE(Select(DescOf(4096, 4096, 0.25, kLeastHalfTokens - 1), device).path, Path::kHalf);
  // A third or fourth group that is less than half full.
  for (int m : {513, 639, 769, 895, kMostHalfTokens + 1}) {
    EXPECT_EQ(Select(DescOf(4096, 4096, 0.25, m), device).path, Path::kDequantize) << m;
  }
  // A matrix so small that its pairs do not go round.
  const Plan small = Select(DescOf(48, 1024, 0.0, 100), device);
  ASSERT_EQ(small.path, Path::kHalf);
  EXPECT_EQ(small.half.clusters, 2);
  // Too many pairs for the device's arithmetic.
  EXPECT_EQ(Select(DescOf(1 << 24, 65536, 0.0, 256), device).path, Path::kDequantize);
  device.wide_teams = 33;
  EXPECT_EQ(Select(other, device).path, Path::kWide);
}

TEST(CudaSelect, HalfRegistersAreThere) {
  constexpr int kRegisters = 65536 / kHalfThreads / 8 * 8;
  EXPECT_EQ(kHalfThreads % 128, 0);
  EXPECT_LE(32 * kHalfProductWarps * kHalfProductRegisters +
                (kHalfThreads - 32 * kHalfProductWarps) * kHalfFetchRegisters,
            kHalfThreads * kRegisters);
}

// Where an outlier's correction goes in operand A, by the text of half_tile.h.
TEST(CudaSelect, OutliersByTile) {
  std::mt19937 rng(6);
  quant::UnpackedMatrix plain = testing::RandomUnpacked({45, 2816, 0.25, false, 0.01}, &rng);
  // The same place again: added up, of equal binary exponents so that the sum is exact.
  plain.outliers.push_back({33, 700, 0x3C00});
  plain.outliers.push_back({33, 700, 0x3C00});
  plain.outliers.push_back({33, 700, 0x3C00});
  const quant::PackedStorage packed = quant::Pack(plain);
  const OutlierLists lists = RepackOutliersByTile(packed.view());
  ASSERT_EQ(lists.start, packed.outlier_start);
  ASSERT_EQ(lists.entries.size(), TileOutlierEntries(packed.outliers.size()));
  ASSERT_EQ(lists.entries.size() % 4, 0u);
  // [row][2-bit position] of the sums.
  std::map<std::pair<int, int>, float> expected, actual;
  for (const quant::Outlier& o : plain.outliers) {
    expected[{o.row, o.position}] += quant::HalfToFloat(o.value);
  }
  const size_t tiles = plain.shape.tiles(2);
  size_t entries = 0;
  for (size_t list = 0; list < plain.shape.num_outlier_lists(); ++list) {
    for (uint32_t i = lists.start[list]; i < lists.start[list + 1]; ++i) {
      const uint32_t entry = lists.entries[i];
      if (entry == HalfOutlier::kNone) continue;
      ++entries;
      const uint32_t at = HalfOutlier::Offset(entry);
      const int f = at / 512, lane = at / 16 % 32, word = at / 4 % 4, high = at / 2 % 2;
      const int row = static_cast<int>(list / tiles) * 16 + lane / 4 + word % 2 * 8;
      const int channel = 4 * f + word / 2 + 2 * high, strip = lane % 4;
      const int in_tile = 64 * HalfOutlier::Quad(entry) + 16 * strip + channel;
      actual[{row, static_cast<int>(list % tiles) * 512 + in_tile}] =
          quant::HalfToFloat(static_cast<uint16_t>(entry >> 16));
    }
  }
  EXPECT_EQ(actual, expected);
  EXPECT_EQ(entries, expected.size()) << "a place twice";
  for (size_t i = packed.outliers.size(); i < lists.entries.size(); ++i) {
    EXPECT_EQ(lists.entries[i], HalfOutlier::kNone);
  }
  EXPECT_TRUE(RepackOutliersByTile(quant::Pack(testing::RandomUnpacked({16, 128}, &rng)).view())
                  .start.empty());
}

// Both chunks of the last pair of a 4-bit strip exist in the activations.
TEST(CudaSelect, HalfPairsCoverTheChunks) {
  for (int cols : {16, 784, 1040, 11008}) {
    for (double share4 : {0.0, 0.3, 1.0}) {
      const quant::PackedShape s = DescOf(16, cols, share4, 1).shapes[0];
      EXPECT_GE(2 * HalfPairs(s), NumQuads(s));
      EXPECT_LE(2 * HalfPairs(s), NumQuads(s) + 1);
    }
  }
}

// A tile's slabs begin where those of the tile before end.
TEST(CudaSelect, SlabsFollowTheTiles) {
  for (bool zero_points : {false, true}) {
    for (int cols : {16, 784, 1040, 11008}) {
      for (double share4 : {0.0, 0.3, 1.0}) {
        const quant::PackedShape s = DescOf(16, cols, share4, 1, zero_points).shapes[0];
        int slabs = 0;
        for (int tile = 0; tile < NumTiles(s); ++tile) {
          EXPECT_EQ(FirstSlab(s, tile), slabs);
          const int bits = tile < s.tiles(2) ? 2 : 4;
          slabs += TileSlabs(bits, s.tile_chunks(bits, bits == 2 ? tile : tile - s.tiles(2)),
                             zero_points);
        }
        EXPECT_EQ(NumSlabs(s), slabs) << cols << " " << share4;
      }
    }
  }
}

TEST(CudaSelect, ErrorsNameTheFieldAndTheLimit) {
  DeviceProps old = kA100;
  old.major = 7;
  EXPECT_NE(Select(DescOf(16, 16, 0, 1), old).error.find("7.0"), std::string::npos);
  Desc d = DescOf(16, 4096, 0, 1);
  d.shapes[0].cols = 4104;
  EXPECT_NE(Select(d, kH200).error.find("4104"), std::string::npos);
  d = DescOf(16, 4096, 0, 1);
  d.shapes[0].chunks2 -= 1;
  EXPECT_NE(Select(d, kH200).error.find("chunks2 31"), std::string::npos);
  d = DescOf(16, 4096, 0, 0);
  EXPECT_NE(Select(d, kH200).error.find("m 0"), std::string::npos);
  d = DescOf(16, 4096, 0, 1);
  d = DescOf(16, 4096, 0, kMaxSmallTokens + 1);
  d.x_type = DType::kF32;
  EXPECT_NE(Select(d, kH200).error.find("x_type"), std::string::npos);
  d = DescOf(16, 4096, 0, 1);
  d.count = 4;
  EXPECT_NE(Select(d, kH200).error.find("count 4"), std::string::npos);
  d.count = 2;
  d.shapes[1] = DescOf(16, 2048, 0, 1).shapes[0];
  EXPECT_NE(Select(d, kH200).error.find("part 1 has cols 2048"), std::string::npos);
  EXPECT_NE(Select(DescOf(16, 70000 / 16 * 16, 0, 1), kH200).error.find("65536"),
            std::string::npos);
  EXPECT_NE(Select(DescOf(16, 70000 / 16 * 16, 1, 1), kH200).error.find("256"), std::string::npos);
}

TEST(CudaSelect, SegmentsCoverAllTilesInOrder) {
  for (int tiles = 1; tiles < 80; ++tiles) {
    EXPECT_EQ(SegmentBegin(tiles, 0), 0);
    EXPECT_EQ(SegmentBegin(tiles, kSegments), tiles);
    for (int s = 0; s < kSegments; ++s)
      EXPECT_LE(SegmentBegin(tiles, s), SegmentBegin(tiles, s + 1));
  }
}

TEST(CudaSelect, QuadsFollowTheChunks) {
  const quant::PackedShape s = DescOf(16, 11008, 0.25, 1).shapes[0];
  int quad = 0;
  for (int tile = 0; tile < NumTiles(s); ++tile) {
    EXPECT_EQ(FirstQuad(s, tile), quad);
    const bool two = tile < s.tiles(2);
    quad += two ? 2 * s.tile_chunks(2, tile) : s.tile_chunks(4, tile - s.tiles(2));
  }
  EXPECT_EQ(quad, NumQuads(s));
}

// Every outlier comes back from the list of its row and segment, in the order of positions.
TEST(CudaSelect, OutliersByRowAndSegment) {
  std::mt19937 rng(5);
  const quant::UnpackedMatrix plain = testing::RandomUnpacked({45, 2816, 0.25, false, 0.01}, &rng);
  const quant::PackedStorage packed = quant::Pack(plain);
  const OutlierLists lists = RepackOutliers(packed.view());
  std::map<std::pair<int, int>, uint16_t> expected;
  for (const quant::Outlier& o : plain.outliers) expected[{o.row, o.position}] = o.value;
  ASSERT_FALSE(expected.empty());
  ASSERT_EQ(lists.start.size(), 48u * kSegments + 1);
  ASSERT_EQ(lists.entries.size(), expected.size());
  const int tiles = NumTiles(plain.shape);
  for (int row = 0; row < 48; ++row) {
    int last = -1;
    for (int segment = 0; segment < kSegments; ++segment) {
      for (uint32_t i = lists.start[row * kSegments + segment];
           i < lists.start[row * kSegments + segment + 1]; ++i) {
        const int position = static_cast<int>(lists.entries[i] & 0xFFFF);
        EXPECT_GT(position, last);
        last = position;
        EXPECT_GE(position / 512, SegmentBegin(tiles, segment));
        EXPECT_LT(position / 512, SegmentBegin(tiles, segment + 1));
        const auto found = expected.find({row, position});
        ASSERT_NE(found, expected.end());
        EXPECT_EQ(found->second, lists.entries[i] >> 16);
      }
    }
  }
  EXPECT_TRUE(RepackOutliers(quant::Pack(testing::RandomUnpacked({16, 128, 0.25}, &rng)).view())
                  .start.empty());
}

}  // namespace
}  // namespace fewbit::cuda
