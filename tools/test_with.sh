#!/usr/bin/env bash
# Runs tests with other releases than those of .venv:
#   tools/test_with.sh floors [pytest arguments]     the oldest that pyproject.toml allows
#   tools/test_with.sh newest [pytest arguments]     the newest that were tried
# Both are lists in tools/releases/. Packages, and a copy of the checkout with C++ kernels of its own
# (they are of one release of torch), are in .venv-NAME; nothing of .venv or this checkout changes.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD name=${1:?"wanted floors or newest, and then what pytest takes"}
shift
venv=$checkout/.venv-$name list=$checkout/tools/releases/$name.txt copy=$checkout/.venv-$name/checkout
# What depends on these releases; the rest is the same with every one.
if [ $# -eq 0 ]; then
  set -- tests/ops tests/losses tests/models tests/rollout tests/train \
    tests/gpu/conformance/extension tests/gpu/chunk_loop
  # The interpreter of Triton 3.9.0 refuses the mask of gather_rows_kernel, which its compiler takes,
  # and there are no budgets of registers for its compiler yet.
  [ "$name" = newest ] || set -- "$@" tests/gpu/conformance/interpreter tests/gpu/budgets/triton
fi

install_releases() {
  # Where a machine has a cap on torch, it does not hold for these.
  export PIP_CONSTRAINT=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1
  rm -rf "$venv"
  "${PYTHON:-python3}" -m venv "$venv"
  python tools/install_torch.py "$(grep '^torch==' "$list")"
  # Without torch, or pip would add the libraries that it was installed without. What tests need
  # beside the releases has its versions in pyproject.toml's extra `dev`.
  mapfile -t others < <(
    grep -Ev '^(#|torch==)' "$list"
    grep -oE '"(hypothesis|ninja|peft|pytest|pytest-xdist)[<=>][^"]*"' pyproject.toml | tr -d '"'
  )
  python -m pip install --quiet --no-compile --no-warn-conflicts "${others[@]}"
  cp "$list" "$venv/releases.txt"
}

copy_checkout() {
  mkdir -p "$copy"
  # Built modules and objects stay; a file that is gone here goes there.
  find "$copy" -type f ! -name '*.so' ! -path "$copy/build/*" -delete
  tar -c --exclude='*.so' --exclude=__pycache__ wavalign_fast csrc tests tools benchmarks docs \
    pyproject.toml setup.py README.md LICENSE | tar -x -C "$copy"
}

build_kernels() {
  WAVALIGN_FORCE_CUDA=0 WAVALIGN_SKIP_CUDA=1 python setup.py --quiet build_ext --inplace egg_info
  python -c 'import torch, wavalign_fast._C'
  # One file of CUDA kernels serves every release of torch: the one of this checkout, and every
  # release must be able to compile its bindings.
  [ ! -f "$checkout/wavalign_fast/_C_cuda.abi3.so" ] ||
    cp "$checkout/wavalign_fast/_C_cuda.abi3.so" wavalign_fast/
  PYTHONPATH=csrc python -c 'import build_cuda as build
built = {"CUDA_RELEASE": "none", "CUDA_ARCHS": ""}
build.run([*build.bindings_command(built, debug=False), "-fsyntax-only", build.BINDINGS])'
}

[ -f "$list" ] || { echo "there is no $list" >&2; exit 2; }
export PATH="$venv/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
cmp -s "$list" "$venv/releases.txt" || install_releases
copy_checkout
cd "$copy"
build_kernels
python -c 'import sys, torch, transformers, triton
print("Python", sys.version.split()[0], *(f"{m.__name__} {m.__version__}" for m in (torch, triton, transformers)))'
python -m pytest -n 2 "$@"
