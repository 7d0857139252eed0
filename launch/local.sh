#!/usr/bin/env bash
# Several processes of one job on this machine, on CPU (virtual devices) or with one share of its GPUs each.
#
#   launch/local.sh --processes=2 --devices=2 -- --config=configs/ccd_sr.py:debug --workdir=/tmp/two
#
# --processes=N   processes (default 2)
# --devices=D     virtual CPU devices in each (default 1); 0: the machine's GPUs, dealt out evenly
# --dry-run       print the commands, run nothing
#
# What follows -- goes to python -m sdd_jax.main, or to the command that $PROGRAM names (precompute, evaluate).
# Process 0 writes to this terminal, process i to LOGS/process_i.log (LOGS: $LOGS, else a new directory under
# ${TMPDIR:-/tmp}). The first process that fails ends the others.

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
  gpus="$(nvidia-smi --list-gpus 2>/dev/null | wc -l)"
  [ "$gpus" -ge "$processes" ] || fail "--devices=0: $processes processes need as many GPUs; nvidia-smi lists $gpus"
  share=$((gpus / processes))
fi
port="$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
logs="${LOGS:-${TMPDIR:-/tmp}/sdd_jax.$port}"
[ -n "$DRY_RUN" ] || mkdir -p "$logs"

pids=()
# shellcheck disable=SC2317,SC2329  # called by the trap
end_all() {
  [ ${#pids[@]} -eq 0 ] || kill -TERM "${pids[@]}" 2>/dev/null || true
}
trap end_all EXIT TERM INT

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

status=0
for ((i = 0; i < processes; i++)); do
  wait -n || status=$?
  if [ "$status" -ne 0 ]; then
    printf 'error: a process ended with status %d; the logs of the others are in %s\n' "$status" "$logs" >&2
    break
  fi
done
exit "$status"
