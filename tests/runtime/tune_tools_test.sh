#!/bin/sh
# fewbit-tune and fewbit-quantize --tune as programs: flags, messages, exit codes, files, kills.
#   tune_tools_test.sh FEWBIT_TUNE FEWBIT_QUANTIZE FEWBIT_EVAL SOURCE_DIR
set -u
tune=$1
quantize=$2
eval_program=$3
source=$4
. "$source/tests/runtime/tool_checks.sh"

# 2000 token ids below 320, as an .npy file.
write_ids() {
  {
    header="{'descr': '<i4', 'fortran_order': False, 'shape': ($1,), }"
    printf '\223NUMPY\001\000\166\000%-117s\n' "$header"
    awk -v n="$1" 'BEGIN { s = 7; for (i = 0; i < n; i++) { s = (s * 1103 + 12345) % 65536; v = int(s / 7) % 320;
      printf "\\%03o\\%03o\\000\\000", v % 256, int(v / 256) } }' | xargs -0 printf
  } > "$2"
}
write_ids 2000 "$dir/ids.npy"
write_ids 100 "$dir/short.npy"

quantize_flags="--context=16 --share4=0 --method=searched --calibration_windows=16"
tune_flags="--device=cpu --tune_context=32 --tune_batch=4 --tune_held_out=8 --tune_steps=24 --tune_evaluate_every=6 --tune_checkpoint_every=4"
# shellcheck disable=SC2086  # words
run_quantize() { "$quantize" --model "$golden" --calibration_ids "$dir/ids.npy" $quantize_flags "$@"; }
# shellcheck disable=SC2086
run_tune() { "$tune" --model "$golden" --quantized "$dir/q" --calibration_ids "$dir/ids.npy" $tune_flags "$@"; }
# shellcheck disable=SC2086
run_both() { run_quantize --tune $tune_flags "$@"; }

run_quantize --out "$dir/q" > /dev/null 2> "$dir/stderr" || fail "quantize: $(cat "$dir/stderr")"
run_tune --out "$dir/t" --report "$dir/t.html" > "$dir/table" 2> "$dir/progress" || fail "tune: $(cat "$dir/progress")"
grep -q "24 steps of 4 windows of 32 tokens on cpu" "$dir/table" || fail "no first line: $(cat "$dir/table")"
grep -q "held-out KL .* -> .* nats" "$dir/table" || fail "no result"
grep -q "step 24 of 24, held-out KL .* tokens/s, 0 s left" "$dir/progress" || fail "no progress line: $(cat "$dir/progress")"
grep -q "$(printf '\033')" "$dir/progress" && fail "terminal control in a file"
for part in "<svg" "held out" "second-order scales" "--tune_steps=24"; do
  grep -qF -- "$part" "$dir/t.html" || fail "no $part in the report"
done
grep -q '"tuned"' "$dir/t/config.json" || fail "config.json does not say that it is tuned"

# What was asked of it: nearer to the original, by the evaluation's own count.
divergence() {
  "$eval_program" --model "$1" --text_ids "$dir/ids.npy" --context=32 --reference "$golden" --json 2> /dev/null |
    sed 's/.*"kl_divergence":\([0-9.e-]*\).*/\1/'
}
awk -v before="$(divergence "$dir/q")" -v after="$(divergence "$dir/t")" \
  'BEGIN { exit !(after > 0 && after < 0.95 * before) }' || fail "not nearer: $(divergence "$dir/q") $(divergence "$dir/t")"

# Both stages in one command, killed at whatever moment, come to the same bytes.
run_both --out "$dir/both" > /dev/null 2> "$dir/stderr" || fail "quantize --tune: $(cat "$dir/stderr")"
diff -r "$dir/both" "$dir/t" > /dev/null || fail "quantize --tune gives other bytes than the two programs"
diff -r "$dir/both.quantized" "$dir/q" > /dev/null || fail "OUT.quantized differs"
[ -e "$dir/both.run.json" ] && fail "a finished run left its record"
for delay in 0.02 0.05 0.1 0.15 0.2 0.3 0.4; do
  [ -e "$dir/killed" ] && break
  # shellcheck disable=SC2086
  "$quantize" --model "$golden" --calibration_ids "$dir/ids.npy" $quantize_flags --tune $tune_flags \
    --out "$dir/killed" > /dev/null 2>&1 &
  pid=$!
  sleep $delay
  kill -9 $pid 2> /dev/null
  wait $pid 2> /dev/null
done
if [ ! -e "$dir/killed" ]; then
  [ -e "$dir/killed.run.json" ] && refuses "another outliers" run_both --out "$dir/killed" --outliers=0
  run_both --out "$dir/killed" --threads=3 > /dev/null 2> "$dir/stderr" || fail "going on after a kill: $(cat "$dir/stderr")"
fi
diff -r "$dir/killed" "$dir/t" > /dev/null || fail "going on after a kill gave other files"
[ -e "$dir/killed.partial/progress.json" ] && fail "a finished run left its record"

# A signal keeps what was done. (TERM: a shell's background jobs ignore INT.)
# shellcheck disable=SC2086
"$tune" --model "$golden" --quantized "$dir/q" --calibration_ids "$dir/ids.npy" $tune_flags --tune_steps=4000 \
  --out "$dir/stopped" > /dev/null 2> "$dir/stderr" &
pid=$!
for _ in 1 2 3 4 5 6 7 8 9 10; do
  [ -e "$dir/stopped.partial/progress.json" ] && break
  sleep 0.2
done
kill -TERM $pid
wait $pid
code=$?
[ $code -eq 130 ] || fail "exit $code instead of 130 after a signal"
grep -q "of 4000 steps; the same command goes on from there" "$dir/stderr" || fail "no word of the steps: $(cat "$dir/stderr")"
refuses "another tune_steps" run_tune --out "$dir/stopped"
[ -e "$dir/stopped" ] && fail "a stopped run left its output"

"$tune" --help | grep -q -- "--quantized" || fail "--help"
"$tune" --version | grep -q "^fewbit-tune" || fail "--version"
"$quantize" --help | grep -q -- "--tune_steps" || fail "--help of fewbit-quantize"
refuses "unexpected argument 'stray'" "$tune" stray
refuses "model is empty" "$tune"
refuses "quantized is empty" "$tune" --model x
refuses "out is empty" "$tune" --model x --quantized y
refuses "either --calibration or --calibration_ids" "$tune" --model "$golden" --quantized "$dir/q" --out "$dir/none"
refuses "tune_steps is 0" run_tune --out "$dir/none" --tune_steps=0
refuses "sub_scale_rate is -1" run_tune --out "$dir/none" --tune_sub_scale_rate=-1
refuses "there is no directory" run_tune --out "$dir/none" --report "$dir/nowhere/r.html"
refuses "device" run_tune --out "$dir/none" --device=tpu
refuses "too short: 100 tokens" run_tune --out "$dir/none" --calibration_ids "$dir/short.npy"
refuses "is not quantized" run_tune --out "$dir/none" --quantized "$golden"
refuses "is quantized; model must be the original" run_tune --out "$dir/none" --model "$dir/q"
refuses "is a llama" run_tune --out "$dir/none" --model "$source/tests/golden/qwen2"
refuses "$dir/nothing" run_tune --out "$dir/none" --quantized "$dir/nothing"
refuses "$dir/q: exists" run_tune --out "$dir/q"
refuses "$dir/t: exists" run_both --out "$dir/t"
mkdir "$dir/foreign.quantized"
refuses "no interrupted run left it" run_both --out "$dir/foreign"
if ! command -v nvidia-smi > /dev/null; then refuses "CUDA" run_tune --out "$dir/none" --device=cuda; fi
for left in "$dir/none" "$dir/none.partial" "$dir/none.run.json"; do
  [ -e "$left" ] && fail "a refused run left $left"
done

[ $failures -eq 0 ] && echo "all passed"
exit $((failures > 0))
