#!/usr/bin/env bash
# Written by `turborec launch runpod`. Started again, it goes on where it was.
# 0: trained; 75 or 130: stopped and saved; 2: a mistake; 11, 12, ...: which of the phases failed.
set -euo pipefail

logger=
stopped=
child=
say() { echo "$(date -Is) $*"; }

end() {
  local code=$?
  trap - EXIT
  say "ended with exit code $code"
  # A pod that is not told to end goes on costing.
  if [[ -z $stopped ]]; then
    runpodctl stop pod "$RUNPOD_POD_ID" || say "that failed: stop the pod by hand"
  fi
  [[ -n $logger ]] || exit "$code"
  exec >&- 2>&-
  for _ in {1..50}; do  # the last words are on their way to the log
    kill -0 "$logger" 2>/dev/null || break
    sleep 0.1
  done
  exit "$code"
}

stop() {
  stopped=1
  say "SIG$1: what is done will be saved"
  [[ -z $child ]] || kill -s "$1" "$child" 2>/dev/null || true
}

trap end EXIT
trap 'stop TERM' TERM HUP
trap 'stop INT' INT
trap 'stop USR1' USR1

[[ -w /workspace ]] || {
  say "/workspace is not there, or $(id -un) may not write to it: mount a volume there"
  exit 2
}
cd /workspace
out=runs/two
words=(ml-1m-then-ml-20m --debug)
mkdir -p "$(dirname "$out")"
exec > >(exec tee -ai "$out.log") 2>&1
logger=$!

run() {
  local code=0
  [[ -z $stopped ]] || return 75
  set -m  # in a group of its own: it gets Ctrl-C from here, and not from the terminal as well
  "$@" </dev/null &
  child=$!
  set +m
  [[ -z $stopped ]] || kill "$child" 2>/dev/null || true  # a signal came while it was started
  wait "$child" || code=$?
  # A signal ends `wait`, not what runs.
  while kill -0 "$child" 2>/dev/null; do
    code=0
    wait "$child" || code=$?
  done
  child=
  return "$code"
}

python=python3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  say "turborec needs Python 3.11 or newer, which $python is not: name another one by --job python=..."
  exit 2
}
"$python" -c 'import sys, torch; sys.exit(torch.cuda.device_count() < 1)' || {
  say "PyTorch does not find 1 GPU here"
  exit 2
}

export PYTHONUNBUFFERED=1
export TURBOREC_HOME=/workspace/turborec


restarts=3
for ((start = 0; ; start++)); do
  code=0
  run "$python" -m turborec launch phases --restarts 3 --processes 1 "${words[@]}" --out "$out" || code=$?
  [[ -z $stopped && $start -lt $restarts ]] || exit "$code"
  ((code > 128)) || exit "$code"  # a training that fails is started again by the phases themselves
  say "exit code $code: started again from the last checkpoint, $((start + 1)) of $restarts"
done
