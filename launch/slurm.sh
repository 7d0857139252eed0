#!/usr/bin/env bash
# A Slurm job: one process per GPU, over any number of nodes.
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh --config=configs/ccd_sr.py:sd15 --workdir=DIR
#   bash launch/slurm.sh --dry-run --config=... --workdir=...        prints what a node would run
#
# DIR is on a disk that all nodes share. Two minutes before the time limit, and at preemption, the job saves, and goes
# back into the queue; it resumes from DIR. PYTHON names the interpreter, PROGRAM another command
# than main (precompute, evaluate). Options of sbatch override those below.

#SBATCH --job-name=sdd_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
#SBATCH --signal=B:TERM@120

set -euo pipefail
# Slurm runs a copy of this file, so the directory of submission is the repository.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
[ -f launch/common.sh ] || { echo "error: submit from the repository's root: sbatch launch/slurm.sh" >&2; exit 2; }
# shellcheck source=launch/common.sh
source launch/common.sh

if [ "${1:-}" = --help ]; then usage; exit 0; fi
if [ "${1:-}" = --dry-run ]; then DRY_RUN=1; shift; fi
[ $# -gt 0 ] || fail "no job: give --config and --workdir"

# since Slurm 22.05 srun does not take over the --cpus-per-task of sbatch
cpus=()
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || cpus=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
# not --kill-on-bad-exit: status 75 of the first that has saved would end the others; a dead peer ends them by heartbeat
command=(srun --kill-on-bad-exit=0 "${cpus[@]}" "$PYTHON" -m "sdd_jax.$PROGRAM" --distributed "$@")
if [ -n "$DRY_RUN" ]; then
  run "${command[@]}"
  exit 0
fi
[ -n "${SLURM_JOB_ID:-}" ] || fail "not a Slurm job: submit with sbatch, or look with --dry-run first"

step=
save_and_requeue() {
  trap - TERM
  run scancel --signal=TERM "$SLURM_JOB_ID"
  wait "$step" || true
  run scontrol requeue "$SLURM_JOB_ID"
}
trap save_and_requeue TERM

run "${command[@]}" &
step=$!
wait "$step"
