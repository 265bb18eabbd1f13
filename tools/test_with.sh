#!/usr/bin/env bash
# Runs tests with other releases than those in .venv:
#   tools/test_with.sh floors [pytest arguments]     the oldest releases that pyproject.toml allows
#   tools/test_with.sh newest [pytest arguments]     the newest releases that were tried
#   tools/test_with.sh newest --install              installs them, and tests nothing
# tools/releases/ lists both. The packages are in .venv-NAME, and so is a copy of the checkout, because
# C++ kernels serve only the release of torch that they were built with. .venv and this checkout stay
# as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD name=${1:?"want floors or newest, then arguments of pytest"}
shift
venv=$checkout/.venv-$name list=$checkout/tools/releases/$name.txt copy=$checkout/.venv-$name/checkout
# The tests that depend on these releases, without those that CI runs once, with the pinned ones.
if [[ " $* " != *" tests"* ]]; then # options of pytest alone leave the choice here
  # Files, locks, signals, messages, and when a run stops, goes on or is refused: no release changes it.
  for file in directory_lock evaluations interrupted overwrite places provenance result_table resume rewards \
    same_on_all say started_rewards stop_signal trackers train_command vllm_rollouts; do
    set -- "$@" "--ignore=tests/train/test_$file.py"
  done
  # Requests to vLLM and its processes; the CUDA kernels run on the CPU, where test_bindings.py has shown
  # that this release calls them.
  for file in tests/rollout/test_server_process tests/rollout/test_vllm tests/gpu/conformance/extension/test_ops; do
    set -- "$@" "--ignore=$file.py"
  done
  # CI compiles the Triton kernels for every target with the pinned release, which takes minutes. All
  # instruction sets are the same source and compiler; what four ranks save has the format of two; and the
  # pinned release shows that rewards go up.
  left_out="keeps_its_budget and (sm_80 or sm_120"
  [ "$name" = newest ] || left_out+=" or sm_100a or gfx942"
  left_out+=") or other_instruction_sets or (saved_at_any_world and 4-False) or reward_goes_up"
  set -- "$@" -k "not ($left_out)"
  set -- "$@" -m "not slow" tests/ops tests/losses tests/models tests/rollout tests/train \
    tests/gpu/conformance/extension tests/gpu/conformance/interpreter tests/gpu/chunk_loop \
    tests/gpu/budgets/triton
fi

install_releases() {
  # A machine's constraint on torch does not apply to these.
  export PIP_CONSTRAINT=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1
  rm -rf "$venv"
  "${PYTHON:-python3}" -m venv "$venv"
  python tools/install_torch.py "$(grep '^torch==' "$list")"
  # Nothing that requires torch, or pip would add the libraries that it was installed without.
  mapfile -t others < <(grep -Ev '^(#|torch==)' "$list"; wanted httpx hypothesis ninja pytest pytest-xdist tenacity)
  python -m pip install --quiet --no-compile --no-warn-conflicts psutil "${others[@]}"
  # These require torch. Only here liger-kernel runs in CI: beside .venv's benchmarks it would be a rival.
  python -m pip install --quiet --no-compile --no-deps accelerate "$(wanted peft)" \
    "$(grep '^liger-kernel==' benchmarks/rivals.txt)"
  cp "$list" "$venv/releases.txt"
}

# wanted NAMES...: what pyproject.toml's extras want of these packages, one line each.
wanted() {
  local name
  for name in "$@"; do grep -m1 -oE "\"${name}[<=>][^\"]*\"" pyproject.toml | tr -d '"'; done
}

copy_checkout() {
  mkdir -p "$copy"
  # Keeps built modules and objects; a file deleted here is deleted there.
  find "$copy" -type f ! -name '*.so' ! -path "$copy/build/*" -delete
  # tar returns 1 if a folder changed meanwhile, in which a test beside this made a cache.
  { tar -c --exclude='*.so' --exclude=__pycache__ wavalign_fast csrc tests tools benchmarks docs examples \
    pyproject.toml setup.py README.md LICENSE || [ $? -eq 1 ]; } | tar -x -C "$copy"
}

build_kernels() {
  WAVALIGN_FORCE_CUDA=0 WAVALIGN_SKIP_CUDA=1 python setup.py --quiet build_ext --inplace egg_info
  python -c 'import torch, wavalign_fast._C, wavalign_fast._host'
  # The CUDA kernels of this checkout serve every release of torch, and every release must be able to
  # compile their bindings.
  [ ! -f "$checkout/wavalign_fast/_C_cuda.abi3.so" ] ||
    cp "$checkout/wavalign_fast/_C_cuda.abi3.so" wavalign_fast/
  PYTHONPATH=csrc python -c 'import build_cuda as build
built = {"CUDA_RELEASE": "none", "CUDA_ARCHS": ""}
build.run([*build.bindings_command(built, debug=False), "-fsyntax-only", build.BINDINGS])'
}

[ -f "$list" ] || { echo "there is no $list" >&2; exit 2; }
export PATH="$venv/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
cmp -s "$list" "$venv/releases.txt" || install_releases
[ "$1" != --install ] || exit 0
copy_checkout
cd "$copy"
build_kernels
python -c 'import sys, torch, transformers, triton
print("Python", sys.version.split()[0], *(f"{m.__name__} {m.__version__}" for m in (torch, triton, transformers)))'
python -m pytest -n 2 --dist worksteal "$@"
