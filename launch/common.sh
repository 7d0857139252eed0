# shellcheck shell=bash
# Sourced by the scripts beside it: dry runs, messages, and the repository's root.

# shellcheck disable=SC2034
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${PYTHON:-python3}"
# which command of sdd_jax runs: main, precompute or evaluate
PROGRAM="${PROGRAM:-main}"
DRY_RUN="${DRY_RUN:-}"
# how main ends when it was asked to stop and has saved, not finished
# shellcheck disable=SC2034
STOPPED=75

# show COMMAND...: prints the command, quoted as a shell would read it.
show() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  printf '\n' >&2
}

# run COMMAND...: shows the command, and runs it unless this is a dry run.
run() {
  show "$@"
  if [ -z "$DRY_RUN" ]; then "$@"; fi
}

# fail MESSAGE: one line on stderr, exit status 2.
fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# usage: the calling script's own header comment.
usage() {
  sed -n '2,/^$/ s/^# \{0,1\}//p' "$0"
}
