// The emulator itself, with kernels of a few lines of PTX: results, the orders it may take, and
// what it reports.
#include "tests/emulator/emulator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <set>

namespace fewbit::emulator {
namespace {

using ::testing::ContainsRegex;
using ::testing::ElementsAre;
using ::testing::ThrowsMessage;

// One kernel, named k, with the arguments a and b (addresses) and n.
std::string Ptx(const std::string& body, const std::string& shared = "") {
  return ".version 9.0\n.target sm_90a\n.address_size 64\n\n" + shared +
         "\n.visible .entry k(\n\t.param .u64 a,\n\t.param .u64 b,\n\t.param .u32 n\n)\n{\n"
         "\t.reg .pred %p<9>;\n\t.reg .b16 %rs<9>;\n\t.reg .b32 %r<29>;\n\t.reg .f32 %f<29>;\n"
         "\t.reg .b64 %rd<19>;\n\tld.param.u64 %rd1, [a];\n\tld.param.u64 %rd2, [b];\n"
         "\tld.param.u32 %r1, [n];\n\tmov.u32 %r2, %tid.x;\n\tmov.u32 %r3, %ctaid.x;\n" +
         body + "\tret;\n}\n";
}

class EmulatorTest : public ::testing::Test {
 protected:
  // Memory of `count` numbers, counted up from `first`.
  uint32_t* Numbers(int count, uint32_t first = 0) {
    auto* numbers = static_cast<uint32_t*>(memory_.Allocate(sizeof(uint32_t) * count));
    for (int i = 0; i < count; ++i) numbers[i] = first + static_cast<uint32_t>(i);
    return numbers;
  }

  void Launch(const std::string& ptx, unsigned blocks, unsigned threads, const void* a,
              const void* b, uint32_t n, uint64_t seed = 1, unsigned cluster = 1) {
    Module module(ptx);
    const Kernel* kernel = module.Find("k");
    ASSERT_NE(kernel, nullptr);
    ASSERT_EQ(Parameters(*kernel).size(), 3u);
    std::array<std::byte, 20> arguments;
    std::memcpy(arguments.data(), &a, 8);
    std::memcpy(arguments.data() + 8, &b, 8);
    std::memcpy(arguments.data() + 16, &n, 4);
    LaunchShape shape;
    shape.grid[0] = blocks;
    shape.block[0] = threads;
    shape.cluster[0] = cluster;
    machine_.seed = seed;
    emulator::Run(*kernel, shape, arguments, machine_);
  }

  GlobalMemory memory_;
  Machine machine_ = {4, 228 << 10, 2048, 1, &memory_};
};

// b[i] = a[i] + i for i < n.
const char kAddIndex[] = R"(
	mov.u32 %r4, %ntid.x;
	mad.lo.s32 %r5, %r3, %r4, %r2;
	setp.ge.s32 %p1, %r5, %r1;
	@%p1 bra $L_end;
	mul.wide.s32 %rd3, %r5, 4;
	add.s64 %rd4, %rd1, %rd3;
	add.s64 %rd5, %rd2, %rd3;
	ld.global.u32 %r6, [%rd4];
	add.s32 %r7, %r6, %r5;
	st.global.u32 [%rd5], %r7;
$L_end:
)";

TEST_F(EmulatorTest, ThreadsOfAllBlocksWriteTheirElement) {
  uint32_t* a = Numbers(100, 1000);
  uint32_t* b = Numbers(100);
  Launch(Ptx(kAddIndex), 4, 32, a, b, 99);
  for (uint32_t i = 0; i < 99; ++i) EXPECT_EQ(b[i], 1000 + 2 * i);
  EXPECT_EQ(b[99], 99u);  // beyond n
}

TEST_F(EmulatorTest, LanesThatTookDifferentWaysMeetAgain) {
  // Odd lanes count in a loop, then all add up their neighbours' numbers.
  uint32_t* b = Numbers(32);
  Launch(Ptx(R"(
	mov.u32 %r5, %r2;
	and.b32 %r4, %r2, 1;
	setp.eq.s32 %p1, %r4, 0;
	@%p1 bra $L_meet;
$L_loop:
	add.s32 %r5, %r5, 100;
	add.s32 %r4, %r4, 1;
	setp.lt.s32 %p2, %r4, 4;
	@%p2 bra $L_loop;
$L_meet:
	shfl.sync.bfly.b32 %r6|%p3, %r5, 1, 31, -1;
	mul.wide.s32 %rd3, %r2, 4;
	add.s64 %rd5, %rd2, %rd3;
	st.global.u32 [%rd5], %r6;
)"),
         1, 32, nullptr, b, 0);
  for (uint32_t i = 0; i < 32; ++i) EXPECT_EQ(b[i], (i ^ 1) + (i % 2 == 0 ? 300 : 0)) << i;
}

TEST_F(EmulatorTest, HalvesAreRoundedOnce) {
  uint32_t* b = Numbers(4);
  // 2048 + 1.001 as halves: 2048 + 1 is a tie that goes to 2048; with the exact addend it does not.
  Launch(Ptx(R"(
	mov.b32 %r4, 0x68006800;
	mov.b32 %r5, 0x3c013c00;
	mov.b32 %r6, 0x3c003c00;
	fma.rn.f16x2 %r7, %r5, %r6, %r4;
	st.global.u32 [%rd2], %r7;
	mov.f32 %f1, 0f477fe001;
	cvt.rn.f16.f32 %rs1, %f1;
	st.global.u16 [%rd2+4], %rs1;
	cvt.rp.f16.f32 %rs2, 0f3f800001;
	st.global.u16 [%rd2+6], %rs2;
)"),
         1, 1, nullptr, b, 0);
  EXPECT_EQ(b[0], 0x68016800u);
  EXPECT_EQ(b[1], 0x3c017bffu);
}

TEST_F(EmulatorTest, BulkCopyIsThereWhenThePhaseEnds) {
  uint32_t* a = Numbers(64, 7);
  uint32_t* b = Numbers(64);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Launch(Ptx(R"(
	mov.u32 %r10, barrier;
	mov.u32 %r11, stage;
	setp.ne.s32 %p1, %r2, 0;
	@%p1 bra $L_ready;
	mbarrier.init.shared::cta.b64 [%r10], 1;
	mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r10], 256;
	cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r11], [%rd1], 256, [%r10];
$L_ready:
	bar.sync 0;
$L_wait:
	{ .reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%r10], 0; selp.u32 %r4, 1, 0, done; }
	setp.eq.s32 %p2, %r4, 0;
	@%p2 bra $L_wait;
	shl.b32 %r5, %r2, 2;
	add.s32 %r6, %r11, %r5;
	ld.shared.u32 %r7, [%r6];
	mul.wide.s32 %rd3, %r2, 4;
	add.s64 %rd5, %rd2, %rd3;
	st.global.u32 [%rd5], %r7;
)",
               ".shared .align 8 .b8 barrier[8];\n.shared .align 16 .b8 stage[256];\n"),
           1, 64, a, b, 0, seed);
    EXPECT_EQ(std::memcmp(a, b, 256), 0) << seed;
  }
}

TEST_F(EmulatorTest, WarpsWithoutABarrierAreTakenInManyOrders) {
  // Each warp takes the next number: who comes first is up to the seed.
  std::set<uint32_t> first;
  for (uint64_t seed = 0; seed < 30; ++seed) {
    auto* a = static_cast<uint32_t*>(memory_.Allocate(4));
    *a = 0;
    uint32_t* b = Numbers(4);
    Launch(Ptx(R"(
	and.b32 %r4, %r2, 31;
	setp.ne.s32 %p1, %r4, 0;
	@%p1 bra $L_end;
	atom.global.add.u32 %r5, [%rd1], 1;
	shr.u32 %r6, %r2, 5;
	mul.wide.s32 %rd3, %r6, 4;
	add.s64 %rd5, %rd2, %rd3;
	st.global.u32 [%rd5], %r5;
$L_end:
)"),
           1, 128, a, b, 0, seed);
    EXPECT_EQ(*a, 4u);
    first.insert(b[0]);
  }
  EXPECT_THAT(first, ElementsAre(0, 1, 2, 3));
}

TEST_F(EmulatorTest, BlocksOfAClusterReadEachOther) {
  // Every block writes its index, then reads its neighbour's.
  uint32_t* b = Numbers(8);
  Launch(Ptx(R"(
	mov.u32 %r10, place;
	mov.u32 %r4, %cluster_ctarank;
	st.shared.u32 [%r10], %r3;
	barrier.cluster.arrive.aligned;
	barrier.cluster.wait.aligned;
	xor.b32 %r5, %r4, 1;
	mapa.shared::cluster.u32 %r6, %r10, %r5;
	ld.shared::cluster.u32 %r7, [%r6];
	mul.wide.s32 %rd3, %r3, 4;
	add.s64 %rd5, %rd2, %rd3;
	st.global.u32 [%rd5], %r7;
	barrier.cluster.arrive.aligned;
	barrier.cluster.wait.aligned;
)",
             ".shared .align 4 .b8 place[4];\n"),
         8, 32, nullptr, b, 0, 1, 2);
  EXPECT_THAT(std::vector<uint32_t>(b, b + 8), ElementsAre(1, 0, 3, 2, 5, 4, 7, 6));
}

TEST_F(EmulatorTest, AccessBehindAnAllocationIsAFault) {
  uint32_t* a = Numbers(10);
  uint32_t* b = Numbers(40);
  EXPECT_THAT([&] { Launch(Ptx(kAddIndex), 1, 32, a, b, 32); },
              ThrowsMessage<KernelFault>(
                  ContainsRegex("lane 10, line [0-9]+: ld.global.u32 .*4 bytes of global memory: "
                                "0 bytes behind an allocation of 40 bytes")));
}

TEST_F(EmulatorTest, BarrierThatNobodyPassesIsAFault) {
  EXPECT_THAT([&] { Launch(Ptx("\tbar.sync 1, 96;\n"), 1, 64, nullptr, nullptr, 0); },
              ThrowsMessage<KernelFault>(
                  ContainsRegex("all wait:\n.*warp 0, line [0-9]+: bar.sync 1, 96")));
}

TEST_F(EmulatorTest, CopyThatOutlivesItsBlockIsAFault) {
  uint32_t* a = Numbers(64);
  const std::string ptx = Ptx(R"(
	mov.u32 %r10, barrier;
	mov.u32 %r11, stage;
	mbarrier.init.shared::cta.b64 [%r10], 1;
	mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r10], 256;
	cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r11], [%rd1], 256, [%r10];
)",
                              ".shared .align 8 .b8 barrier[8];\n"
                              ".shared .align 16 .b8 stage[256];\n");
  // Now and then it is quick enough.
  const auto many_times = [&] {
    for (uint64_t seed = 0; seed < 50; ++seed) Launch(ptx, 1, 1, a, a, 0, seed);
  };
  EXPECT_THAT(many_times, ThrowsMessage<KernelFault>(ContainsRegex(
                              "a block ends while a copy into its shared memory is under way")));
}

TEST_F(EmulatorTest, BarrierThatWasNeverInitialisedIsAFault) {
  EXPECT_THAT(
      [&] {
        Launch(Ptx("\tmov.u32 %r10, barrier;\n"
                   "\tmbarrier.arrive.shared::cta.b64 _, [%r10];\n",
                   ".shared .align 8 .b8 barrier[8];\n"),
               1, 1, nullptr, nullptr, 0);
      },
      ThrowsMessage<KernelFault>(ContainsRegex("no mbarrier was initialised here")));
}

// A value that a loop writes under a condition is there in later turns, too.
TEST_F(EmulatorTest, RegistersOutliveTheTurnThatWroteThem) {
  uint32_t* b = Numbers(1);
  Launch(Ptx(R"(
	mov.u32 %r4, 0;
$L_loop:
	setp.ne.s32 %p1, %r4, 0;
	@%p1 bra $L_use;
	mov.u32 %r5, 77;
$L_use:
	add.s32 %r6, %r4, 1;
	mul.lo.s32 %r7, %r6, 3;
	add.s32 %r8, %r7, %r5;
	mov.u32 %r4, %r6;
	setp.lt.s32 %p2, %r4, 5;
	@%p2 bra $L_loop;
	st.global.u32 [%rd2], %r8;
)"),
         1, 1, nullptr, b, 0);
  EXPECT_EQ(*b, 15u + 77u);
}

// b[0] = 5, then the next kernel starts; a kernel that reads b[0] before or behind its wait.
TEST_F(EmulatorTest, WhatAnUnfinishedKernelWroteMustBeWaitedFor) {
  const std::string write =
      Ptx("\tgriddepcontrol.launch_dependents;\n"
          "\tst.global.u32 [%rd2], 5;\n");
  const std::string early = Ptx("\tld.global.u32 %r5, [%rd2];\n\tgriddepcontrol.wait;\n");
  const std::string late = Ptx("\tgriddepcontrol.wait;\n\tld.global.u32 %r5, [%rd2];\n");
  uint32_t* b = Numbers(1);
  const auto launch = [&](const std::string& ptx, uint32_t number, uint32_t first_unfinished) {
    machine_.launch = number;
    machine_.first_unfinished = first_unfinished;
    return Launch(ptx, 1, 1, nullptr, b, 0);
  };
  launch(write, 1, 1);
  launch(late, 2, 1);
  launch(early, 3, 2);  // launch 1 has ended
  launch(write, 4, 4);
  EXPECT_THAT([&] { launch(early, 5, 4); },
              ThrowsMessage<KernelFault>(ContainsRegex("launch 4 wrote this, 1 before this one")));
}

using EmulatorDeathTest = EmulatorTest;

TEST_F(EmulatorDeathTest, OpcodeThatIsNotKnown) {
  EXPECT_DEATH(Launch(Ptx("\tfma.rz.f32 %f1, %f1, %f1, %f1;\n"), 1, 1, nullptr, nullptr, 0),
               "unknown opcode: fma.rz.f32");
}

}  // namespace
}  // namespace fewbit::emulator
