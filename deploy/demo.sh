#!/usr/bin/env bash
# From a fresh clone to text in the terminal: installs what is missing, builds, serves the bundled model, streams a completion and keeps
# serving until Ctrl-C.
#
#   deploy/demo.sh [--once] [--port=8033] [--metrics_port=8034] [--model=DIR] [--prompt=TEXT] [--no_install]
#
#   --once         end after the completion, with exit status 0
#   --port         gRPC port on 127.0.0.1
#   --metrics_port port of /metrics on 127.0.0.1
#   --model        another checkpoint directory instead of the bundled one
#   --prompt       what to continue
#   --no_install   fail if packages are missing instead of installing them
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/.."

. deploy/common.sh

once='' port=8033 metrics_port=8034 model=deploy/models/fewbit-demo-29m
prompt="It was a bright cold morning when the old captain came down to the harbour, and"
setup=()
for argument in "$@"; do
  case $argument in
    --once) once=1 ;;
    --port=*) port=${argument#*=} ;;
    --metrics_port=*) metrics_port=${argument#*=} ;;
    --model=*) model=${argument#*=} ;;
    --prompt=*) prompt=${argument#*=} ;;
    --no_install) setup=(--no_install) ;;
    -h | --help) show_help "$self"; exit 0 ;;
    *) die "unknown argument '$argument' (see --help)" ;;
  esac
done
[[ -f $model/config.json ]] || die "there is no model in '$model' (no config.json)"
for number in "$port" "$metrics_port"; do
  [[ $number =~ ^[0-9]{1,5}$ && $number -ge 1 && $number -le 65535 ]] || die "'$number' is no port"
  if (exec 3<> "/dev/tcp/127.0.0.1/$number") 2> /dev/null; then
    die "port $number is in use: choose others with --port=N and --metrics_port=N"
  fi
done

step "Packages and libraries"
deploy/setup.sh "${setup[@]}"

step "Build (preset release; the first time takes some minutes)"
if command -v nvcc > /dev/null || [[ -x /usr/local/cuda/bin/nvcc ]]; then
  say "There is a CUDA toolkit, but this version runs on the CPU only."
else
  say "No CUDA toolkit here: the CPU runtime it is."
fi
logs=build/demo
mkdir -p "$logs"
jobs=$(parallel_jobs)
build() {
  cmake --preset release > "$logs/configure.log" 2>&1 || { tail -n 30 "$logs/configure.log" >&2; return 1; }
  local command=(cmake --build --preset release --parallel "$jobs" --target fewbit-server fewbit-client)
  if [[ -t 1 ]]; then
    "${command[@]}"
  else
    "${command[@]}" > "$logs/build.log" 2>&1 || { tail -n 60 "$logs/build.log" >&2; return 1; }
  fi
}
build || die "the build failed (see above)"
bin=build/release/bin

step "Start"
log=$logs/server.log
server=
finish() {
  [[ -z $server ]] || kill -KILL "$server" 2> /dev/null || true
}
trap finish EXIT
failed() {
  printf '\n--- the last lines of %s\n' "$log" >&2
  tail -n 20 "$log" >&2
  die "$1"
}
# A session of its own: Ctrl-C in the terminal reaches this script only, which then lets the server drain.
setsid "$bin/fewbit-server" --model="$model" --port="$port" --metrics_port="$metrics_port" < /dev/null > "$log" 2>&1 &
server=$!
"$bin/fewbit-client" --address="127.0.0.1:$port" --wait_ready=120 --info > "$logs/info.log" 2>&1 &
waiting=$!
trap 'kill "$waiting" 2> /dev/null || true; exit 130' INT TERM
# Whichever ends first: the wait for readiness, or a server that cannot start.
ready=0
wait -n "$server" "$waiting" || ready=$?
if ! kill -0 "$server" 2> /dev/null; then
  server=
  kill "$waiting" 2> /dev/null || true
  failed "fewbit-server did not start"
fi
((ready == 0)) || { cat "$logs/info.log" >&2; failed "fewbit-server did not become ready"; }
say "fewbit-server is ready:"
sed 's/^/  /' "$logs/info.log"

drain() {
  trap '' INT TERM HUP
  kill -TERM "$server" 2> /dev/null || true
  local status=0
  wait "$server" || status=$?
  server=
  ((status == 0)) || failed "fewbit-server ended with status $status"
}

step "A completion"
stopping=
trap 'stopping=1' INT TERM HUP
"$bin/fewbit-client" --address="127.0.0.1:$port" --echo --max_new_tokens=120 --temperature=0.7 --top_p=0.95 --seed=11 \
  "$prompt" || [[ -n $stopping ]] || failed "the completion failed"
if [[ -n $once || -n $stopping ]]; then
  drain
  exit 0
fi

cat << TEXT || true

==> Serving until Ctrl-C
  gRPC     127.0.0.1:$port (fewbit.v1.GenerationService, health, reflection)
  metrics  http://127.0.0.1:$metrics_port/metrics
  log      $log

In another terminal, from $PWD:
  $bin/fewbit-client --address=127.0.0.1:$port "Once upon a time"
  $bin/fewbit-client --address=127.0.0.1:$port --concurrency=8 --requests=64 --prompt_tokens=64 --max_new_tokens=64
  $bin/fewbit-client --help
TEXT
status=0
wait "$server" || status=$?
if [[ -n $stopping ]]; then
  say ""
  say "Draining."
  drain
  say "Done."
  exit 0
fi
server=
failed "fewbit-server ended by itself with status $status"
