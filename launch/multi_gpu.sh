#!/usr/bin/env bash
# One node with several GPUs: one process drives all of them.
#
#   launch/multi_gpu.sh [--gpus=0,1,2,3] [--dry-run] -- --config=configs/ccd_sr.py:sd15 --workdir=runs/sd15
#
# --gpus=LIST   GPUs to use (default: all)
# --dry-run     print the command, run nothing
#
# What follows -- goes to python -m sdd_jax.main; starting the same command again resumes.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

settings=("XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}")
while [ $# -gt 0 ]; do
  case "$1" in
    --gpus=*) settings+=("CUDA_VISIBLE_DEVICES=${1#*=}") ;;
    --dry-run) DRY_RUN=1 ;;
    --help) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown option $1: put the job's own flags after --" ;;
  esac
  shift
done
[ $# -gt 0 ] || fail "no job: give --config and --workdir after --"

cd "$ROOT"
run env "${settings[@]}" "$PYTHON" -m sdd_jax.main "$@"
