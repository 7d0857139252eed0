#!/usr/bin/env bash
# TPU VMs, from one host to a pod slice, through gcloud: the same commands on every worker.
#
#   launch/tpu_vm.sh create  --name=N --zone=Z --type=v5litepod-16 [--spot] [--project=P]
#   launch/tpu_vm.sh install --name=N --zone=Z [--nfs=HOST:/share]
#   launch/tpu_vm.sh run     --name=N --zone=Z -- --config=configs/ccd_sr.py:sd15 --workdir=/mnt/sdd_jax/run
#   launch/tpu_vm.sh resume  (the options of all three) -- (the job)   create, install, run until the job is finished
#   launch/tpu_vm.sh delete  --name=N --zone=Z
#
# --type=T       accelerator type: v5litepod-4 is one host, v5litepod-16, v5p-32 and v6e-16 are slices
# --version=V    runtime image (default: the one that fits the type)
# --nfs=H:/S     mounted at /mnt/sdd_jax on every worker; a slice needs a workdir that all its workers share
# --spot         a VM that may be taken back; use resume
# --dry-run      print the commands, run nothing
#
# install sends the committed files of this repository (git archive HEAD). A run stops with its ssh session: start it
# inside tmux. Stopping and running again resumes from the workdir. resume makes a machine that is gone again, for as long
# as the zone has none to give; what goes wrong otherwise it tries five times, a minute apart.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

action="${1:-}"
case "$action" in
  create | install | run | resume | delete) shift ;;
  --help) usage; exit 0 ;;
  *) fail "say what to do: create, install, run, resume or delete (--help shows how)" ;;
esac
name='' zone='' type='' version='' nfs='' project=() spot=()
while [ $# -gt 0 ]; do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
    --nfs=*) nfs="${1#*=}" ;;
    --project=*) project=("$1") ;;
    --spot) spot=("$1") ;;
    --dry-run) DRY_RUN=1 ;;
    --) shift; break ;;
    *) fail "unknown option $1: put the job's own flags after --" ;;
  esac
  shift
done
job=("$@")
if [ -z "$name" ] || [ -z "$zone" ]; then fail "$action needs --name and --zone"; fi
case "$action" in
  create | resume) [ -n "$type" ] || fail "$action needs --type, for example --type=v5litepod-16" ;;
esac
case "$action" in
  run | resume) [ ${#job[@]} -gt 0 ] || fail "no job: give --config and --workdir after --" ;;
esac
case "$type" in
  v5litepod-*) version="${version:-v2-alpha-tpuv5-lite}" ;;
  v5p-*) version="${version:-v2-alpha-tpuv5}" ;;
  v6e-*) version="${version:-v2-alpha-tpuv6e}" ;;
  *) version="${version:-tpu-ubuntu2204-base}" ;;
esac

tpu() {
  local verb="$1"
  shift
  run gcloud compute tpus tpu-vm "$verb" "$@" "--zone=$zone" "${project[@]}"
}

everywhere() {
  tpu ssh "$name" --worker=all "--command=$1"
}

create() {
  tpu create "$name" "--accelerator-type=$type" "--version=$version" "${spot[@]}"
}

install() {
  local archive="${TMPDIR:-/tmp}/sdd_jax.$$.tgz"
  run git -C "$ROOT" archive --format=tgz "--output=$archive" HEAD &&
    tpu scp "$archive" "$name:sdd_jax.tgz" --worker=all &&
    run rm -f "$archive" &&
    everywhere "mkdir -p sdd_jax && tar -xzf sdd_jax.tgz -C sdd_jax && cd sdd_jax && \
python3 -m pip install --quiet --user uv && python3 -m uv venv --allow-existing --python=3.11 ../venv && \
python3 -m uv pip install --quiet --python=../venv/bin/python --editable '.[tpu]'" || return
  if [ -n "$nfs" ]; then
    everywhere "sudo apt-get install -qq -y nfs-common && sudo mkdir -p /mnt/sdd_jax && \
(mountpoint -q /mnt/sdd_jax || sudo mount $nfs /mnt/sdd_jax) && sudo chmod a+rwx /mnt/sdd_jax"
  fi
}

run_job() {
  local quoted
  printf -v quoted ' %q' "${job[@]}"
  everywhere "cd sdd_jax && exec ../venv/bin/python -m sdd_jax.main --distributed$quoted"
}

delete() {
  tpu delete "$name" --quiet
}

# state: the machine's, MISSING where there is none; status 1 and gcloud's message where it tells neither.
state() {
  local said
  if said="$(gcloud compute tpus tpu-vm describe "$name" "--zone=$zone" "${project[@]}" '--format=value(state)' 2>&1)" &&
    grep -m 1 -xE '[A-Z_]+' <<<"$said"; then
    return 0
  elif grep -qE 'NOT_FOUND|was not found' <<<"$said"; then
    echo MISSING
  else
    printf '%s\n' "$said" >&2
    return 1
  fi
}

# again WHAT: waits a minute before the next attempt; ends with WHAT at the fifth in a row.
again() {
  failures=$((failures + 1))
  [ "$failures" -lt 5 ] || fail "$1: its error is above"
  sleep 60
}

resume() {
  if [ -n "$DRY_RUN" ]; then
    create
    install
    run_job
    return
  fi
  local found said code installed='' failures=0
  while true; do
    found="$(state)" || { again "gcloud does not tell the state of $name"; continue; }
    case "$found" in
      READY)
        [ -n "$installed" ] || install || { again "the installation fails on $name"; continue; }
        installed=1 failures=0 code=0
        run_job || code=$?
        [ "$code" -ne 0 ] || return 0
        sleep 30
        if [ "$code" -ne "$STOPPED" ] && [ "$(state)" = READY ]; then
          fail "the job failed on a healthy $name: its error is above"
        fi
        ;;
      MISSING)
        installed=''
        if said="$(create 2>&1 | tee >(cat >&2))"; then
          failures=0
        elif grep -qiE 'capacity|enough resources' <<<"$said"; then
          sleep 60
        else
          again "$name cannot be created"
        fi
        ;;
      CREATING | STARTING | RESTARTING | REPAIRING | DELETING) sleep 30 ;;
      *) delete || again "$name cannot be deleted" ;;
    esac
  done
}

case "$action" in
  create) create ;;
  install) install ;;
  run) run_job ;;
  resume) resume ;;
  delete) delete ;;
esac
