"""When the CUDA kernels are built, for which architectures, and what a failed build reports.

The compilers in these tests are scripts that write empty objects.
"""

import os
import shlex
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.test_build import ROOT, checkout, run_backend  # noqa: F401

sys.path.insert(0, str(ROOT / "csrc"))

import build_cuda

NVCC = """#!/bin/bash
echo "$@" >> {log}
case "$1" in
  --list-gpu-code) echo "sm_80 sm_90 sm_100 sm_120"; exit;;
  --version) echo "Cuda compilation tools, release 12.8, V12.8.93"; exit;;
esac
{failure}
while [ $# -gt 0 ]; do [ "$1" = -o ] && touch "$2"; shift; done
"""
CXX = """#!/bin/bash
for word in "$@"; do case "$word" in -c | -shared) compiles=yes;; esac; done
[ "$compiles" ] || exec g++ "$@"
while [ $# -gt 0 ]; do
  case "$1" in -o) touch "$2";; -MF) echo "nothing:" > "$2";; esac
  shift
done
"""


@dataclass
class Built:
    """The results of a build."""

    code: int
    output: str
    extensions: set[str]
    nvcc: list[list[str]]
    """The commands that nvcc ran."""


@pytest.fixture
def build(checkout, tmp_path):  # noqa: F811
    """Builds a wheel with fake compilers; ``nvcc``: "good", "bad" or "none"."""

    def script(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(*, nvcc: str, **env: str) -> Built:
        log = tmp_path / "log"
        log.write_text("")
        if nvcc != "none":
            failure = 'echo "kernels.cu(7): error: no such thing" >&2; exit 2' * (nvcc == "bad")
            script("bin/nvcc", NVCC.format(log=log, failure=failure))
        env |= {"CXX": str(script("c++", CXX)), "CUDA_HOME": str(tmp_path), "MAX_JOBS": "3"}
        done = run_backend(checkout, "build_wheel", tmp_path / "wheel", **env)
        wheels = list((tmp_path / "wheel").glob("*.whl"))
        names = zipfile.ZipFile(wheels[0]).namelist() if wheels else []
        return Built(
            code=done.returncode,
            output=done.stdout + done.stderr,
            extensions={name.partition(".")[0] for name in names if name.endswith(".so")},
            nvcc=[shlex.split(line) for line in log.read_text().splitlines()],
        )

    return run


CPP = {"wavalign_fast/_C", "wavalign_fast/_host"}


def test_kernels_are_built_with_nvcc(build):
    built = build(nvcc="good")
    assert built.code == 0, built.output
    assert built.extensions == CPP | {"wavalign_fast/_C_cuda"}, built.output
    assert "WITHOUT" not in built.output
    compiled = [command for command in built.nvcc if "-c" in command]
    sources = sorted(command[command.index("-c") + 1] for command in compiled)
    assert sources == build_cuda.KERNELS
    targets = {word for word in compiled[0] if word.startswith("-gencode")}
    assert targets == {
        "-gencode=arch=compute_80,code=[sm_80]",
        "-gencode=arch=compute_90a,code=[sm_90a]",
        "-gencode=arch=compute_100a,code=[sm_100a]",
        "-gencode=arch=compute_120,code=[sm_120,compute_120]",
    }
    # The objects of this build stay in the checkout and must not get into the next wheel.
    skipped = build(nvcc="good", WAVALIGN_SKIP_CUDA="1")
    assert skipped.extensions == CPP
    assert skipped.output.count("WITHOUT its CUDA kernels: WAVALIGN_SKIP_CUDA is set") == 1
    assert not skipped.nvcc


@pytest.mark.parametrize(
    ("nvcc", "reason"),
    [("none", "no nvcc in CUDA_HOME"), ("bad", "kernels.cu(7): error: no such thing")],
)
def test_a_failed_build_is_reported_once_and_left_out(build, nvcc, reason):
    built = build(nvcc=nvcc)
    assert built.code == 0, built.output
    assert built.extensions == CPP
    assert built.output.count("WITHOUT its CUDA kernels") == 1
    assert built.output.count(reason) == 1


@pytest.mark.parametrize(
    ("nvcc", "env", "reason"),
    [
        ("none", {}, "no nvcc in CUDA_HOME"),
        ("bad", {}, "kernels.cu(7): error: no such thing"),
        ("good", {"WAVALIGN_SKIP_CUDA": "1"}, "WAVALIGN_SKIP_CUDA is set"),
        ("good", {"WAVALIGN_CUDA_ARCHS": "80;75"}, "got '75'"),
    ],
)
def test_forced_kernels_are_never_left_out(build, nvcc, env, reason):
    built = build(nvcc=nvcc, WAVALIGN_FORCE_CUDA="1", **env)
    assert built.code != 0
    assert "WAVALIGN_FORCE_CUDA is set" in built.output and reason in built.output
    assert not built.extensions


KNOWN = {"80", "90", "100", "120"}


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("", "80 90a 100a 120+PTX"),
        ("8.0;9.0a 12.0+PTX", "80 90a 120+PTX"),
        ("100f", "100f"),
        ("90a,", "90a"),
    ],
)
def test_architectures_can_be_chosen(monkeypatch, asked, chosen):
    monkeypatch.setenv("WAVALIGN_CUDA_ARCHS", asked)
    assert [str(arch) for arch in build_cuda.architectures(KNOWN)] == chosen.split()


@pytest.mark.parametrize("asked", ["hopper", "9", "90a+PTX", "90A", "80;;x"])
def test_malformed_architectures_are_refused(monkeypatch, asked):
    monkeypatch.setenv("WAVALIGN_CUDA_ARCHS", asked)
    with pytest.raises(build_cuda.NoCudaError, match="WAVALIGN_CUDA_ARCHS: got"):
        build_cuda.architectures(KNOWN)


def test_an_old_nvcc_builds_the_architectures_it_supports(monkeypatch, capsys):
    monkeypatch.delenv("WAVALIGN_CUDA_ARCHS", raising=False)
    assert [str(arch) for arch in build_cuda.architectures({"80", "90"})] == ["80", "90a"]
    assert "too old for 100a, 120+PTX" in capsys.readouterr().err
    with pytest.raises(build_cuda.NoCudaError, match="supports none of"):
        build_cuda.architectures({"70"})


def test_nvcc_is_searched_in_cuda_home_alone_if_that_is_set(monkeypatch, tmp_path):
    for folder in ("home/bin", "path"):
        (tmp_path / folder).mkdir(parents=True)
        nvcc = tmp_path / folder / "nvcc"
        nvcc.write_text("#!/bin/sh\n")
        nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert build_cuda.find_nvcc() == tmp_path / "home/bin/nvcc"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build_cuda.find_nvcc() is None
    monkeypatch.delenv("CUDA_HOME")
    assert build_cuda.find_nvcc() == tmp_path / "path/nvcc"
