#!/usr/bin/env bash
# Checks this checkout on a GPU within nine minutes and without a network: builds for the card that is
# there, tests, benchmarks, profiles and sanitizes. Writes each result as soon as it is known.
set -u
FROM=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

usage() {
  cat <<'TEXT'
tools/gpu_check.sh prepare               with a network: fetches the rivals' wheels into .gpu_check/
tools/gpu_check.sh [options] [stage...]  on the GPU machine: runs stages, by default all of them
tools/gpu_check.sh save DIR              saves the results in DIR as benchmarks/results/gpu/*.json

  --out DIR       directory of the results, eight files at most (default: build/gpu_check)
  --limit S       seconds for everything (default: 540)
  --commit NAME   the commit that is measured, where git does not know it
  --rehearse      runs all stages on a pretended GPU with tiny shapes: no figure means anything

Stages: versions build tests trainer hybrid large kernels compiled profile memcheck racecheck. "bench" means
hybrid, large, kernels and compiled. See tools/README.md.
TEXT
}

PYTHON=${PYTHON:-python3}
CARRIED=.gpu_check
STAGES=(versions build tests trainer hybrid large kernels compiled profile memcheck racecheck)
# Seconds of each stage. Later stages share what an earlier one does not use.
declare -A BUDGET=(
  [versions]=20 [build]=80 [tests]=110 [trainer]=50 [hybrid]=50 [large]=45 [kernels]=40 [compiled]=35
  [profile]=25 [memcheck]=40 [racecheck]=25
)
RESULTS=(summary.txt log.txt {machine,tests,hybrid_loss,linear_logprob,profile,sanitizer}.json)
RESERVE=10 # seconds for the summary
LEAST=2    # a stage does not start with fewer seconds

fail() {
  echo "gpu_check: $1" >&2
  exit 2
}

# A path relative to the caller's directory.
from() { case $1 in /*) echo "$1" ;; *) echo "$FROM/$1" ;; esac; }

# --- with a network -------------------------------------------------------------------------------

# rivals.txt names the rivals, wheels.txt those of their requirements that a GPU machine lacks.
prepare() {
  local glibc platforms=()
  for glibc in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${glibc}_x86_64")
  done
  rm -rf "$CARRIED/whl"
  "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
    --python-version "${FOR_PYTHON:-3.12}" "${platforms[@]}" -d "$CARRIED/whl" \
    -r benchmarks/rivals.txt -r tools/gpu_check/wheels.txt || fail "the wheels could not be fetched"
  du -sh "$CARRIED/whl"
}

# --- stages ---------------------------------------------------------------------------------------

# Runs a module, in a rehearsal with the pretended GPU.
py() { "$PYTHON" -m "${PRETENDED[@]}" "$@"; }

versions() { py tools.gpu_check.machine facts "$OUT"; }

build() {
  local archs failed=0
  archs=$(py tools.gpu_check.machine archs) || archs='' # the default ones, which need no GPU
  echo "WAVALIGN_CUDA_ARCHS=$archs"
  if [ "$REHEARSE" = true ]; then
    echo "a rehearsal builds nothing"
  # In place and without pip, which would look for a network and for pins.
  elif ! WAVALIGN_FORCE_CUDA=1 WAVALIGN_CUDA_ARCHS=$archs "$PYTHON" setup.py build_ext --inplace; then
    echo "The build failed; trying again without the CUDA kernels"
    failed=1
    WAVALIGN_SKIP_CUDA=1 "$PYTHON" setup.py build_ext --inplace
  fi
  py tools.gpu_check.machine backends "$OUT" || failed=1
  return $failed
}

# pytest_gpu NAME ARGUMENTS...: runs GPU tests and writes their outcomes under NAME.
pytest_gpu() {
  local name=$1 options=(-m gpu -q -rfEs --tb=short -p no:cacheprovider)
  shift
  # A file that cannot be imported must not stop the others.
  options+=(--continue-on-collection-errors)
  [ "$REHEARSE" = true ] && options+=(-p tools.gpu_check.pretended)
  # A hanging kernel cannot be interrupted, so its process is killed, and another worker continues.
  "$PYTHON" -c 'import pytest_timeout' 2>/dev/null && options+=(--timeout 60 --timeout-method thread)
  "$PYTHON" -m pytest "${options[@]}" -p tools.gpu_check.outcomes --outcomes "$OUT/tests.json" \
    --outcomes-run "$name" "$@"
}

tests() {
  local failed=0 files clock=tests/benchmarks/test_gpu.py workers=()
  # Files without GPU tests may import what is not installed here.
  mapfile -t files < <(grep -rlE --include='test_*.py' 'mark\.gpu' tests | grep -v -e "^$clock$" -e "^$TRAINER/" | sort)
  # Several processes share the GPU: most of the time goes to Triton's compiler and Python.
  "$PYTHON" -c 'import xdist' 2>/dev/null && workers=(-n "$WORKERS")
  [ "$REHEARSE" = true ] && files=("${REHEARSED_TESTS[@]}")
  pytest_gpu together "${workers[@]}" "${files[@]}" || failed=1
  [ "$REHEARSE" = true ] && return $failed
  # The clock is tested alone, because other tests would add to its times.
  pytest_gpu alone "$clock" || failed=1
  return $failed
}

# One process: some of these tests start ranks, and some measure memory.
trainer() {
  local files=("$TRAINER")
  [ "$REHEARSE" = true ] && files=("${REHEARSED_TRAINER[@]}")
  pytest_gpu trainer "${files[@]}"
}

hybrid() { py tools.gpu_check.bench hybrid "$OUT"; }
large() { py tools.gpu_check.bench large "$OUT"; }
kernels() { py tools.gpu_check.bench kernels "$OUT"; }
compiled() { py tools.gpu_check.bench compiled "$OUT"; }
profile() { py tools.gpu_check.step_profile "$OUT"; }

sanitized() {
  local tool=$1 select=$2 options=(-m gpu -q -x -p no:xdist -p no:cacheprovider)
  local files=(tests/gpu/conformance/extension/test_ops.py -k "$select")
  [ "$REHEARSE" = true ] && options+=(-p tools.gpu_check.pretended) files=("${REHEARSED_TESTS[@]}")
  # Without torch's cache every tensor has its own allocation, whose bounds are checked.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$PYTHON" -m tools.gpu_check.sanitizer "$tool" \
    "$OUT/sanitizer.json" -- "$PYTHON" -m pytest "${options[@]}" "${files[@]}"
}

memcheck() { sanitized memcheck "gpu and not graph and not opcheck"; }
racecheck() { sanitized racecheck "gpu and (test_hybrid_rows or compact) and not graph"; }

# --- running the stages ---------------------------------------------------------------------------

note() { echo "$*" | tee -a "$OUT/summary.txt"; }

# Live processes that a stage started, in whatever group they are.
of_stage() {
  local file
  grep -lsF "GPU_CHECK_STAGE=$1" /proc/[0-9]*/environ | while read -r file; do
    file=${file#/proc/}
    echo "${file%/environ}"
  done
}

# signal MARK NAME: sends the signal NAME to all processes of a stage.
signal() {
  local pids
  mapfile -t pids < <(of_stage "$1")
  [ ${#pids[@]} -eq 0 ] || kill -s "$2" "${pids[@]}" 2>/dev/null
}

# gone PID SECOND: waits for the end of a process, at most until that second of this script.
gone() {
  while kill -0 "$1" 2>/dev/null; do
    [ "$SECONDS" -lt "$2" ] || return 1
    sleep 0.1
  done
}

# limited SECONDS FUNCTION: runs it and returns its exit status, or 124 where its time ran out. A
# process that cannot be killed, for example in a hanging driver, is left behind.
limited() {
  local until=$((SECONDS + $1)) code=124
  MARK=$$-$RANDOM$RANDOM
  (
    export GPU_CHECK_STAGE=$MARK
    "$2"
  ) >>"$OUT/log.txt" 2>&1 &
  STAGE=$!
  if gone "$STAGE" "$until"; then
    wait "$STAGE"
    code=$?
  else
    kill -TERM "$STAGE"
    signal "$MARK" TERM
    gone "$STAGE" $((SECONDS + 3))
  fi
  # A hanging kernel must not hold the GPU while the next stage runs.
  end_stage
  return $code
}

# Kills the stage's shell first, or it would start its next command.
end_stage() {
  [ -n "$STAGE" ] || return
  kill -KILL "$STAGE" 2>/dev/null
  signal "$MARK" KILL
  STAGE=''
}

show() { "$PYTHON" -m tools.gpu_check.results show "$OUT" >>"$OUT/summary.txt" 2>&1; }

# allowed STAGES...: the seconds of the first one, in proportion to the budgets of all of them.
allowed() {
  local name all=0
  for name in "$@"; do all=$((all + BUDGET[$name])); done
  echo $(((LIMIT - RESERVE - SECONDS) * BUDGET[$1] / all))
}

stage() {
  local name=$1 limit start=$SECONDS code
  limit=$(allowed "$@")
  if [ "$limit" -lt "$LEAST" ]; then
    note "stage $name skipped left=$limit"
    FAILED=1
    return
  fi
  echo "==== $name, $limit s, at $start s" >>"$OUT/log.txt"
  limited "$limit" "$name"
  code=$?
  [ $code -eq 0 ] || FAILED=1
  note "stage $name rc=$code seconds=$((SECONDS - start)) limit=$limit"
}

# Installs the rivals' wheels into their own folder, which comes first on the path.
install_wheels() {
  compgen -G "$CARRIED/whl/*.whl" >/dev/null || return 0
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$WORK/site" "$CARRIED"/whl/*.whl
}

ended() {
  end_stage
  rm -rf "$WORK"
}

run_stages() {
  local names=("$@") date
  STAGE='' MARK='' FAILED=0 WORK=$(mktemp -d) date=$(date -u +%F)
  trap ended EXIT
  trap 'exit 143' INT TERM
  mkdir -p "$OUT" && [ -w "$OUT" ] || fail "--out: cannot write to $OUT"
  rm -f "${RESULTS[@]/#/$OUT/}"
  [ -n "$COMMIT" ] || COMMIT=$("$PYTHON" -m benchmarks.commit)
  note "commit ${COMMIT:-unknown}, $date"
  [ "$REHEARSE" = false ] || note "rehearsal: without a GPU"
  [ "$REHEARSE" = true ] || limited 40 install_wheels || note "wheels: not installed"
  # The checkout comes first: it is not installed.
  export PYTHONPATH="$PWD:$WORK/site" PYTHONUNBUFFERED=1 CI=true
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
  export GPU_CHECK_RUN="{\"commit\": \"$COMMIT\", \"date\": \"$date\", \"rehearsed\": $REHEARSE}"
  if [ "$REHEARSE" = true ]; then
    export PATH="$PWD/tools/gpu_check/stand_ins:$PATH" TRITON_INTERPRET=1
  fi
  while [ ${#names[@]} -gt 0 ]; do
    stage "${names[@]}"
    names=("${names[@]:1}")
  done
  limited $((LIMIT - SECONDS > RESERVE ? LIMIT - SECONDS : RESERVE)) show
  # Printed last, because a log is often cut to its end.
  echo "---- summary"
  cat "$OUT/summary.txt"
  return $FAILED
}

[ "${1:-}" = prepare ] && { prepare; exit; }
[ "${1:-}" = save ] && exec "$PYTHON" -m tools.gpu_check.results save "$(from "${2:-}")" "${@:3}"
OUT=build/gpu_check LIMIT=540 COMMIT='' REHEARSE=false PRETENDED=() WORKERS=6
REHEARSED_TESTS=(tests/gpu/chunk_loop/test_chunk_loop.py -k "triton-float32 and nothing_to_do")
REHEARSED_TRAINER=(tests/gpu/trainer/test_state.py -k random_numbers)
TRAINER=tests/gpu/trainer
chosen=()
while [ $# -gt 0 ]; do
  case $1 in
    --out | --limit | --commit)
      [ $# -gt 1 ] || fail "$1: wants a value"
      case $1 in --out) OUT=$(from "$2") ;; --limit) LIMIT=$2 ;; --commit) COMMIT=$2 ;; esac
      shift
      ;;
    --rehearse) REHEARSE=true PRETENDED=(tools.gpu_check.pretended) WORKERS=0 ;;
    -h | --help) usage && exit ;;
    bench) chosen+=(hybrid large kernels compiled) ;;
    *)
      [ -n "${BUDGET[$1]:-}" ] || fail "$1: no such stage or option; see --help"
      chosen+=("$1")
      ;;
  esac
  shift
done
[[ $COMMIT =~ ^[[:alnum:]._/-]*$ ]] || fail "--commit: got '$COMMIT', want a name of a commit"
[[ $LIMIT =~ ^[1-9][0-9]*$ ]] || fail "--limit: got $LIMIT, want seconds"
[ ${#chosen[@]} -gt 0 ] || chosen=("${STAGES[@]}")
run_stages "${chosen[@]}"
