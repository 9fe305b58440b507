# Sourced by the scripts: paths, progress lines, quiet runs with a log.
set -euo pipefail

KVPC_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
KVPC_PRESET=${KVPC_PRESET:-release}
KVPC_BUILD=${KVPC_BUILD:-$KVPC_ROOT/build/$KVPC_PRESET}
KVPC_VENV=${KVPC_VENV:-$KVPC_ROOT/.venv}
KVPC_LOGS=${KVPC_LOGS:-$KVPC_BUILD/logs}
KVPC_JOBS=${KVPC_JOBS:-$(nproc)}
export KVPC_ROOT KVPC_PRESET KVPC_BUILD KVPC_VENV KVPC_LOGS KVPC_JOBS
mkdir -p "$KVPC_LOGS"
# Bytecode is kept with the build. Without it, each of the tests' many processes compiles torch and
# transformers for itself: 5 s of processor time each time.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=$KVPC_BUILD/pycache

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# step "what is done" log-name command...
# Runs the command with its output in $KVPC_LOGS/log-name.log and prints one line; on failure it
# prints the end of the log and returns the command's exit code. A terminal sees the time pass,
# anything else a sign of life every half minute.
step() {
  local what=$1 log=$KVPC_LOGS/$2.log start=$SECONDS code=0 pid beat=30
  shift 2
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    if [ -t 1 ]; then
      printf '\r\033[K%-34s %4ds  %.60s' "$what" $((SECONDS - start)) \
        "$(tail -c 400 "$log" | tr '\r' '\n' | tail -n 1 | tr -cd '[:print:]')"
      sleep 0.5
    else
      sleep 0.2
      if ((SECONDS - start >= beat)); then
        printf '%-34s %4ds  ...\n' "$what" $((SECONDS - start))
        beat=$((beat + 30))
      fi
    fi
  done
  wait "$pid" || code=$?
  if [ -t 1 ]; then printf '\r\033[K'; fi
  if ((code == 0)); then
    printf '%-34s %4ds  done\n' "$what" $((SECONDS - start))
  else
    printf '%-34s %4ds  FAILED (exit code %d)\n' "$what" $((SECONDS - start)) "$code"
    printf -- '--- the end of %s\n' "$log"
    tail -n "${KVPC_LOG_LINES:-40}" "$log"
    printf -- '---\n'
  fi
  return "$code"
}
