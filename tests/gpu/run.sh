#!/bin/sh
# Checks and measures the CUDA kernels on this machine's GPU. Needs a driver and a build folder, which
# may have been copied here: the programs link neither the CUDA runtime nor cuBLAS dynamically.
#   tests/gpu/run.sh BUILD_DIR [OUT_DIR [MODEL_DIR]]
# 1. every kernel against float64, batch and geometry invariance;  2. whole models: the golden
# checkpoints, MODEL_DIR (the bundled one) against the CPU runtime, the engine; tuning against the CPU;
# 3. compute-sanitizer, if it is there, on a reduced set;  4. the benches; CSV files go to OUT_DIR.
set -eu
build=${1:?usage: tests/gpu/run.sh BUILD_DIR [OUT_DIR [MODEL_DIR]]}
out=${2:-$build/gpu-results}
root=$(cd "$(dirname "$0")/../.." && pwd)
export FEWBIT_GOLDEN_DIR="$root/tests/golden"
export FEWBIT_MODEL_DIR="${3:-$root/deploy/models/fewbit-demo-29m}"
mkdir -p "$out"

# cuBLAS is opened at run time; look where toolkits and Python packages keep it.
for dir in /usr/local/cuda/lib64 \
  $(python3 -c 'import sysconfig,glob; print(*glob.glob(sysconfig.get_paths()["purelib"]+"/nvidia/c*/lib"))' 2>/dev/null || true); do
  if [ -d "$dir" ]; then LD_LIBRARY_PATH=$dir:${LD_LIBRARY_PATH:-}; fi
done
export LD_LIBRARY_PATH

status=0
"$build/bin/fewbit-gpu-test" || status=1
"$build/bin/fewbit-gpu-runtime-test" || status=1
"$build/bin/fewbit-gpu-tune-test" || status=1

reduced='LinearGpu.ManyOutliersInOneTile:LinearGpu.ZeroAndNonFiniteActivations:*.ReducedSet*'
# No brackets: their '-' would begin what is left out.
reduced_tuning='*Scales.*/0:*Scales.*/1:*Scales.*/2:*.RmsNorm:*.Rope:*.CausalSoftmax:*.KlDivergence:*.Adam:*/llama'
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    # racecheck does not see that a warp's writes come before an mbarrier arrival of one of its lanes
    # behind __syncwarp(): it reports a program of ten lines that does only that, and is content when
    # all lanes arrive. The persistent kernel of few tokens hands over terms and tile descriptors in
    # this way: all its reports in these tests are such pairs of a store and a load. A build of it
    # whose lanes all arrive has none of them; there one pair is left, a norm's factor, which is
    # written in front of a named barrier of all warps that read it behind.
    without=
    [ "$tool" = racecheck ] && without='-LinearGpu.*:LinearGroupGpu.*'
    if compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/bin/fewbit-gpu-test" \
      --gtest_filter="$reduced$without" >"$out/$tool.log" 2>&1 &&
      compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/bin/fewbit-gpu-tune-test" \
        --gtest_filter="$reduced_tuning" >>"$out/$tool.log" 2>&1; then
      echo "compute-sanitizer $tool: clean"
    else
      echo "compute-sanitizer $tool: FAILED, see $out/$tool.log"
      tail -5 "$out/$tool.log"
      status=1
    fi
  done
else
  echo "compute-sanitizer is not installed: skipped"
fi

for shape in ${FEWBIT_GPU_SHAPES:-llama-2-7b}; do
  "$build/bin/fewbit-bench" linears --shape="$shape" --layers --csv >"$out/linears-$shape.csv" || status=1
  cut -d, -f4- "$out/linears-$shape.csv" | tr , '\t'
  "$build/bin/fewbit-bench" attention --shape="$shape" --csv >"$out/attention-$shape.csv" || status=1
  cut -d, -f5- "$out/attention-$shape.csv" | tr , '\t'
done
for shape in ${FEWBIT_GPU_DECODE_SHAPES:-llama-2-7b}; do
  "$build/bin/fewbit-bench" decode --shape="$shape" --kv=f16,i8 --csv >"$out/decode-$shape.csv" || status=1
  cut -d, -f4- "$out/decode-$shape.csv" | tr , '\t'
  "$build/bin/fewbit-bench" decode --shape="$shape" --kv=f16,i8 --first_token=32,128,256,512,2048 --csv >"$out/first-token-$shape.csv" || status=1
  cut -d, -f4- "$out/first-token-$shape.csv" | tr , '\t'
done
for shape in ${FEWBIT_GPU_TUNE_SHAPES:-llama-2-7b}; do
  "$build/bin/fewbit-bench" tune --shape="$shape" --factors=tf32,bf16 --csv >"$out/tune-$shape.csv" || status=1
  cut -d, -f4- "$out/tune-$shape.csv" | tr , '\t'
done
[ $status -eq 0 ] && echo "GPU: all checks passed" || echo "GPU: FAILED"
exit $status
