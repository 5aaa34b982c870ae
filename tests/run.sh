#!/usr/bin/env bash
# Everything a change must pass, on one machine: installs what is missing, builds, and runs all tests.
#
#   tests/run.sh [--only=STEP,STEP] [--no_install]
#
#   format    every source file is as clang-format writes it
#   release   the optimized build and every CTest test: units, simulation, golden models, end to end, rules of the tree
#   asan      address and undefined-behaviour sanitizers: the server, and every parser of outside bytes
#   tsan      thread sanitizer: scheduler, engine and CPU executor (without gRPC, which it cannot judge)
#
# Only where --only asks for them, because they need root, namespaces and Debian's mirrors, and build everything once more:
#
#   container builds the image and runs it as Kubernetes would (tests/deploy/container_test.sh)
#   packages  builds the Debian packages, installs them into a fresh Debian and runs the service (tests/deploy/package_test.sh)
#
# Every step runs even if one before it failed; the exit status is 0 only if all passed. Logs are in build/logs/.
set -uo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/.." || exit 1
. deploy/common.sh

steps=(format release asan tsan)
setup=()
for argument in "$@"; do
  case $argument in
    --only=*) IFS=, read -r -a steps <<< "${argument#*=}" ;;
    --no_install) setup=(--no_install) ;;
    -h | --help) show_help "$self"; exit 0 ;;
    *) die "unknown argument '$argument' (see --help)" ;;
  esac
done
for name in "${steps[@]}"; do
  [[ $name =~ ^(format|release|asan|tsan|container|packages)$ ]] || die "there is no step '$name' (see --help)"
done

asan_tests=(admission_test cancellation_test client_test config_test detokenizer_test device_sensors_test
  generation_test health_test metrics_test overload_test request_codec_test security_test tokenizer_beside_grpc_test tokenizer_test utf8_test warm_up_test
  canary_test checkpoint_test fuzz_test model_config_test quantized_checkpoint_test safetensors_test quant_pack_test)
tsan_tests=(engine_test engine_parts_test scheduler_test simulation_test cpu_executor_test thread_team_test)

run_format() {
  find kernels scheduler runtime server tests \( -name '*.h' -o -name '*.cc' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh' \) -print0 |
    xargs -0 clang-format --dry-run --Werror
}

run_release() {
  cmake --preset release && cmake --build --preset release --parallel "$jobs" && ctest --preset release --parallel "$jobs"
}

# sanitized PRESET TEST...: builds these tests only, runs them. GCC 12's sanitizers lose their way where the kernel randomizes
# addresses more than it did in their time, so that is turned off where it may be.
sanitized() {
  local preset=$1
  shift
  local pattern fixed=()
  pattern=$(IFS='|'; echo "$*")
  setarch --addr-no-randomize true 2> /dev/null && fixed=(setarch --addr-no-randomize)
  cmake --preset "$preset" && "${fixed[@]}" cmake --build --preset "$preset" --parallel "$jobs" --target "$@" &&
    "${fixed[@]}" ctest --preset "$preset" --no-tests=error --parallel "$jobs" --tests-regex "^($pattern)\\."
}

run_asan() {
  export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
  sanitized asan "${asan_tests[@]}"
}

run_tsan() {
  export TSAN_OPTIONS=halt_on_error=1
  sanitized tsan "${tsan_tests[@]}"
}

run_container() { tests/deploy/container_test.sh; }
run_packages() { tests/deploy/package_test.sh; }

step "setup"
deploy/setup.sh --tests "${setup[@]}" || exit 1
jobs=$(parallel_jobs)
logs=build/logs
mkdir -p "$logs"

results=()
failures=0
for name in "${steps[@]}"; do
  step "$name"
  begin=$SECONDS
  if ("run_$name") 2>&1 | tee "$logs/$name.log"; then
    result=passed
  else
    result=FAILED
    failures=$((failures + 1))
  fi
  results+=("$(printf '%-9s %-7s %4d s   %s' "$name" "$result" "$((SECONDS - begin))" "$logs/$name.log")")
done

step "summary"
printf '%s\n' "${results[@]}"
if ((failures)); then
  for name in "${steps[@]}"; do
    sed -n '/The following tests FAILED/,/^$/p' "$logs/$name.log"
  done
  die "$failures of ${#steps[@]} steps failed"
fi
say "Everything passed."
