#!/usr/bin/env bash
# Several processes of one job on this machine, on CPU (virtual devices) or with one share of its GPUs each.
#
#   launch/local.sh --processes=2 --devices=2 -- --config=configs/ccd_sr.py:debug --workdir=/tmp/two
#
# --processes=N   processes (default 2)
# --devices=D     virtual CPU devices in each (default 1); 0: the machine's GPUs, dealt out evenly
# --dry-run       print the commands, run nothing; of GPUs that are not here, one each
#
# What follows -- goes to python -m sdd_jax.main, or to the command that $PROGRAM names (precompute, evaluate).
# Process 0 writes to this terminal, process i to LOGS/process_i.log (LOGS: $LOGS, else a new directory under
# ${TMPDIR:-/tmp}). The first process that fails ends the others; SIGTERM or Ctrl-C has all of them save and waits for
# them, a second one does not wait.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

processes=2
devices=1
while [ $# -gt 0 ]; do
  case "$1" in
    --processes=*) processes="${1#*=}" ;;
    --devices=*) devices="${1#*=}" ;;
    --dry-run) DRY_RUN=1 ;;
    --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown option $1: put the job's own flags after --" ;;
  esac
  shift
done
[ $# -gt 0 ] || fail "no job: give --config and --workdir after --"
[[ "$processes" =~ ^[1-9][0-9]*$ ]] || fail "--processes=$processes: give a number from 1"
[[ "$devices" =~ ^[0-9]+$ ]] || fail "--devices=$devices: give a number, 0 for GPUs"

if [ "$devices" -eq 0 ]; then
  gpus="$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)"
  if [ -n "$DRY_RUN" ] && [ "$gpus" -lt "$processes" ]; then gpus=$processes; fi
  [ "$gpus" -ge "$processes" ] || fail "--devices=0: $processes processes need as many GPUs; nvidia-smi lists $gpus"
  share=$((gpus / processes))
fi
port="$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
logs="${LOGS:-${TMPDIR:-/tmp}/sdd_jax.$port}"
[ -n "$DRY_RUN" ] || mkdir -p "$logs"

pids=()
status=0
# end_all: asks every process to stop and, when they are gone, leaves with the first status that is not 0.
end_all() {
  local pid code
  trap - TERM INT HUP
  [ ${#pids[@]} -gt 0 ] || exit "$STOPPED"
  kill -TERM "${pids[@]}" 2>/dev/null || true
  for pid in "${pids[@]}"; do
    code=0
    wait "$pid" || code=$?
    [ "$status" -ne 0 ] || status=$code
  done
  exit "$status"
}
trap end_all TERM INT HUP

cd "$ROOT"
for ((i = 0; i < processes; i++)); do
  settings=("JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$i")
  if [ "$devices" -eq 0 ]; then
    settings+=("CUDA_VISIBLE_DEVICES=$(seq -s, $((i * share)) $((i * share + share - 1)))")
  else
    settings+=("JAX_PLATFORMS=cpu" "JAX_NUM_CPU_DEVICES=$devices")
  fi
  command=(env "${settings[@]}" "$PYTHON" -m "sdd_jax.$PROGRAM" --distributed "$@")
  show "${command[@]}"
  if [ -n "$DRY_RUN" ]; then
    continue
  elif [ "$i" -eq 0 ]; then
    "${command[@]}" &
  else
    "${command[@]}" >"$logs/process_$i.log" 2>&1 &
  fi
  pids+=($!)
done
[ -z "$DRY_RUN" ] || exit 0

for ((i = 0; i < processes; i++)); do
  code=0
  wait -n || code=$?
  [ "$code" -eq 0 ] || status=$code
  if [ "$code" -ne 0 ] && [ "$code" -ne "$STOPPED" ]; then
    printf 'error: a process ended with status %d; the logs of the others are in %s\n' "$code" "$logs" >&2
    end_all
  fi
done
exit "$status"
