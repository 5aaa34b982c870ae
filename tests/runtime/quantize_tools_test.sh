#!/bin/sh
# fewbit-quantize and fewbit-eval as programs: flags, messages, exit codes, JSON, files.
#   quantize_tools_test.sh FEWBIT_QUANTIZE FEWBIT_EVAL SOURCE_DIR
set -u
quantize=$1
eval_program=$2
source=$3
. "$source/tests/runtime/tool_checks.sh"

ids=$(sed 's/.*"prompt_ids": \[\([^]]*\)\].*/\1/; s/ //g' "$golden/golden.json")
greedy=$(sed 's/.*"greedy_ids": \[\([^]]*\)\].*/\1/; s/ //g' "$golden/golden.json")

# Quantize by ids (the golden checkpoints have no tokenizer), then evaluate.
"$quantize" --model "$golden" --out "$dir/q" --calibration_ids "$golden/input_ids.npy" --context=16 \
  --share4=0 --report="$dir/it's.html" > "$dir/table" 2> "$dir/progress" || fail "quantize: $(cat "$dir/progress")"
grep -q "bits per weight" "$dir/table" || fail "no table of bits"
grep -q "KL divergence" "$dir/table" || fail "no divergence from the original"
grep -q "^report in $dir/it's.html" "$dir/table" || fail "no word of the report"
# The command in it is one that a shell takes: without the report, to another place, the same files.
command=$(sed -n '/<pre/,/<\/pre>/p' "$dir/it's.html" | sed 's/<[^>]*>//g; s/&#39;/'"'"'/g; s/&quot;/"/g; s/&amp;/\&/g')
case $command in "fewbit-quantize "*--calibration_ids=*--share4=0*--context=16*--report=*) ;; *) fail "no command: $command" ;; esac
(cd "$dir" && sh -c "$(printf '%s' "$command" | sed "s:^fewbit-quantize:$quantize:; s:--out=[^ ]*:--out=$dir/again:")" > /dev/null 2>&1) ||
  fail "the command of the report: $command"
diff -r "$dir/q" "$dir/again" > /dev/null || fail "the command of the report gives other files"
grep -q "down_proj" "$dir/table" || fail "no error of down_proj"
grep -q "layer 2 of 2" "$dir/progress" || fail "no progress line"
grep -q "$(printf '\033')" "$dir/progress" && fail "terminal control in a file"

"$eval_program" --model "$golden" --prompt_ids "$ids" --greedy=24 --logits="$dir/logits.npy" --json \
  > "$dir/json" || fail "eval of a prompt"
grep -qF "\"greedy_ids\":[$greedy]" "$dir/json" || fail "greedy ids differ: $(cat "$dir/json")"
grep -q "average_bits" "$dir/json" && fail "average bits of an unquantized model"
if /usr/bin/python3 -c 'import numpy' 2> /dev/null; then
  /usr/bin/python3 - "$dir/logits.npy" "$golden/logits.npy" << 'PYTHON' || fail "numpy reads other logits"
import sys, numpy
ours, golden = numpy.load(sys.argv[1]), numpy.load(sys.argv[2])
assert ours.dtype == numpy.float32 and ours.shape == golden.shape, (ours.dtype, ours.shape)
assert abs(ours - golden).max() < 2e-3, abs(ours - golden).max()
PYTHON
fi

"$eval_program" --model "$dir/q" --text_ids "$golden/input_ids.npy" --context=13 --reference "$golden" --json \
  > "$dir/json" 2> /dev/null || fail "eval of a text"
for key in perplexity tokens average_bits kl_divergence top1_agreement stride; do
  grep -q "\"$key\":" "$dir/json" || fail "no $key in $(cat "$dir/json")"
done
grep -q '"tokens":48' "$dir/json" || fail "not 48 tokens: $(cat "$dir/json")"
"$eval_program" --model "$golden" --text_ids "$golden/input_ids.npy" --context=13 > "$dir/text" 2> /dev/null
grep -q "stride 12" "$dir/text" || fail "no stride: $(cat "$dir/text")"

# Killed again and again it still ends with the bytes of the run that was left alone. The limit of
# 32 KiB per file kills the first time (SIGXFSZ), when the plan is made and the embedding is written.
killed_run() {
  "$quantize" --model "$golden" --out "$dir/killed" --calibration_ids "$golden/input_ids.npy" --context=16 \
    --share4=0 --threads="$1" > /dev/null 2> "$dir/stderr"
}
(ulimit -c 0; ulimit -f $((32768 / 512)); killed_run 1) 2> /dev/null && fail "written despite the limit"
[ -e "$dir/killed" ] && fail "a killed run left its target"
[ -s "$dir/killed.partial/progress.json" ] || fail "a killed run left no progress.json"
for delay in 0.02 0.05 0.1 0.2; do
  [ -e "$dir/killed" ] && break
  "$quantize" --model "$golden" --out "$dir/killed" --calibration_ids "$golden/input_ids.npy" --context=16 \
    --share4=0 > /dev/null 2>&1 &
  pid=$!
  sleep $delay
  kill -9 $pid 2> /dev/null
  wait $pid 2> /dev/null
done
if [ ! -e "$dir/killed" ]; then
  refuses "another outliers" "$quantize" --model "$golden" --out "$dir/killed" --context=16 --share4=0 --outliers=0 \
    --calibration_ids "$golden/input_ids.npy"
  killed_run 3 || fail "going on after a kill: $(cat "$dir/stderr")"
fi
diff -r "$dir/q" "$dir/killed" > /dev/null || fail "going on after a kill gave other files"
# Killed right behind the rename it has not yet taken its own two files away.
[ -e "$dir/killed.partial/files" ] && fail "a finished run left its directory"

for program in "$quantize" "$eval_program"; do
  "$program" --help | grep -q -- "--model" || fail "--help of $program"
  "$program" --version | grep -q "^fewbit-" || fail "--version of $program"
  refuses "unexpected argument 'stray'" "$program" stray
  refuses "Unknown command line flag 'modle'" "$program" --modle=x
  refuses "model is empty" "$program"
done

quantize_golden() {
  "$quantize" --model "$golden" --out "$dir/none" "$@"
}
: > "$dir/empty.txt"
refuses "$dir/absent.txt" quantize_golden --calibration "$dir/absent.txt"
refuses "tokenizer.model" quantize_golden --calibration "$dir/empty.txt"
refuses "either --calibration or --calibration_ids" quantize_golden
refuses "too short: 48 tokens" quantize_golden --calibration_ids "$golden/input_ids.npy"
refuses "method is \"fancy\"" quantize_golden --method=fancy
refuses "share4" quantize_golden --share4=lots
refuses "there is no directory $dir/nowhere" quantize_golden --calibration_ids "$golden/input_ids.npy" --report="$dir/nowhere/x.html"
refuses "held_out_windows is 0" quantize_golden --calibration_ids "$golden/input_ids.npy" --held_out_windows=0
refuses "embedding_bits is 5" quantize_golden --embedding_bits=5
refuses "not an .npy file" quantize_golden --calibration_ids "$golden/config.json"
refuses "one-dimensional int32" quantize_golden --calibration_ids "$golden/logits.npy"
refuses "$dir/q" "$quantize" --model "$golden" --out "$dir/q" --calibration_ids "$golden/input_ids.npy" --context=16
refuses "$dir/nothing" "$quantize" --model "$dir/nothing" --out "$dir/none" --calibration_ids "$golden/input_ids.npy"
[ -e "$dir/none" ] && fail "a refused run left its output"

refuses "give one of" "$eval_program" --model "$golden"
refuses "give one of" "$eval_program" --model "$golden" --prompt_ids 1 --text x
refuses "'five' is not a token id" "$eval_program" --model "$golden" --prompt_ids 1,five
refuses "vocabulary of 320" "$eval_program" --model "$golden" --prompt_ids 1,320
refuses "tokenizer.model" "$eval_program" --model "$golden" --prompt hello
refuses "--logits goes with" "$eval_program" --model "$golden" --text x --logits y
refuses "--reference goes with" "$eval_program" --model "$golden" --prompt_ids 1 --reference y
refuses "max_windows is -1" "$eval_program" --model "$golden" --text x --max_windows=-1
refuses "threads is -2" "$eval_program" --model "$golden" --prompt_ids 1 --threads=-2
refuses "greedy is -1" "$eval_program" --model "$golden" --prompt_ids 1 --greedy=-1

[ $failures -eq 0 ] && echo "all passed"
exit $((failures > 0))
