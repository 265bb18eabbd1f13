"""The doctor shows what works here, and why the rest does not."""

import re

import pytest
import torch

from wavalign_fast import doctor
from wavalign_fast.ops.backends import backend_status


def facts(section: str) -> dict[str, str]:
    return {fact.name: fact.value for fact in doctor.report()[section]}


def test_versions_of_what_runs():
    versions = facts("Versions")
    assert versions["torch"] == torch.__version__
    assert versions["wavalign-fast"] != "not installed"
    assert re.match(r"3\.\d+\.\d+ \(/", versions["python"])


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(doctor.PACKAGES, "no-such-package", "train")
    assert "pip install 'wavalign-fast[train]'" in facts("Versions")["no-such-package"]


def test_every_backend_is_listed_with_its_reason():
    shown = facts("Backends")
    for name, reason in backend_status().items():
        if reason is None:
            assert shown[name].startswith("available")
        else:
            assert shown[name] == f"not available: {reason}"
    assert shown["reference"] == "available"


def test_missing_kernels_are_said_with_the_reason(monkeypatch):
    reason = "the C++ kernels were not built (no compiler at installation)"
    monkeypatch.setattr(doctor, "backend_status", lambda: {"reference": None, "cpu": reason})
    shown = {fact.name: fact for fact in doctor.report()["Backends"]}
    assert shown["cpu"].value == f"not available: {reason}"
    assert shown["cpu"].good is False


def test_what_was_built_for_gpus_is_shown_without_a_gpu(monkeypatch):
    info = {"cuda": "13.0", "archs": "80;90a;120+PTX"}
    monkeypatch.setattr(doctor.cuda, "EXTENSION", info)
    assert facts("Backends")["CUDA kernels"] == "built with CUDA 13.0 for 80, 90a, 120+PTX"
    reason = "the CUDA kernels were not built (no nvcc at installation)"
    monkeypatch.setattr(doctor.cuda, "EXTENSION", reason)
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    shown = facts("Backends")
    assert (shown["CUDA kernels"], shown["Triton kernels"]) == (reason, "no triton installed")


def test_auto_is_what_a_call_would_take(monkeypatch):
    monkeypatch.setattr("wavalign_fast.ops.backends._ENV_BACKEND", "reference")
    assert facts("Backends")["auto takes, on the CPU"] == "reference"
    monkeypatch.setattr("wavalign_fast.ops.backends._ENV_BACKEND", "triton")
    assert facts("Backends")["auto takes, on the CPU"].startswith("nothing: ")


@pytest.mark.gpu
def test_auto_takes_kernels_on_a_gpu():
    assert facts("Backends")["auto takes, on the GPU"] in ("cuda", "triton")


def test_instruction_sets_are_read_from_the_flags(monkeypatch):
    flags = {"avx2", "fma", "avx512f", "avx512bw", "avx512dq"}
    monkeypatch.setattr(doctor.machine, "cpu", lambda: ("Some CPU", flags))
    machine = facts("Machine")
    assert machine["CPU"] == "Some CPU"
    # avx512vl is missing, and a set counts only if it is complete.
    assert machine["instruction sets"] == "AVX2"


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    assert facts("Tools")["C++ compiler"] == "none (looked for no-such-compiler)"


def test_every_flag_that_is_set_is_shown_and_no_other(monkeypatch):
    for flag in doctor.FLAGS:
        monkeypatch.delenv(flag, raising=False)
    assert not {name for name in facts("Machine") if name.startswith("WAVALIGN_")}
    for flag in doctor.FLAGS:
        monkeypatch.setenv(flag, f"value of {flag}")
    shown = facts("Machine")
    for flag in doctor.FLAGS:
        assert shown[flag] == f"value of {flag}"


def script(path, text):
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("#!/no/such/interpreter\n", "cannot be run: no such file"),
        ("\x7fELF of another machine", "cannot be run: "),
        ("#!/bin/sh\nprintf 'gcc \\377 12\\nmore\\n'\n", ": gcc \ufffd 12"),
        ("#!/bin/sh\nexit 1\n", "tool"),
        ("#!/bin/sh\ncat; echo fed\n", ": fed"),
        ("#!/bin/sh\nexec sleep 60\n", "cannot be run: "),
    ],
)
def test_a_tool_that_is_no_good_is_described(monkeypatch, tmp_path, text, shown):
    if "sleep" in text:
        monkeypatch.setattr(doctor, "TOOL_LIMIT_S", 0.1)
    monkeypatch.setenv("CXX", script(tmp_path / "tool", text))
    assert shown in facts("Tools")["C++ compiler"]


@pytest.mark.parametrize("value", ["  ", 'g++ "', "'"])
def test_a_compiler_that_is_no_command_is_looked_for(monkeypatch, value):
    monkeypatch.setenv("CXX", value)
    shown = facts("Tools")["C++ compiler"]
    assert "c++" in shown or shown == f"none (looked for {value})"


def test_metadata_that_cannot_be_read_is_said(monkeypatch):
    def broken(name):
        raise KeyError("Version")

    monkeypatch.setattr(doctor.metadata, "version", broken)
    assert facts("Versions")["rich"] == "its metadata cannot be read: KeyError"


@pytest.mark.parametrize("error", [OSError("x.so"), AttributeError("y"), SystemExit(1)])
def test_a_rich_that_fails_at_its_import_is_done_without(
    monkeypatch, failing_import, capsys, error
):
    failing_import("rich", error)
    monkeypatch.setattr(doctor, "report", lambda: {"Title": [doctor.Fact("name", "value")]})
    assert doctor.main() == 0
    assert capsys.readouterr().out.split() == ["Title", "name", "value"]


@pytest.mark.parametrize("rich_installed", [True, False])
def test_the_page_shows_every_fact(rich_installed, monkeypatch, failing_import, capsys):
    if rich_installed:
        pytest.importorskip("rich")
        monkeypatch.setenv("COLUMNS", "400")
    else:
        failing_import("rich", ImportError("rich"))
    assert doctor.main() == 0
    page = capsys.readouterr().out
    for title, section in doctor.report().items():
        assert title in page
        for fact in section:
            assert fact.name in page and fact.value in page


def test_the_compiled_functions_on_data_are_told(monkeypatch):
    monkeypatch.setattr(doctor.host, "EXTENSION", {"python": "3.11.2"})
    assert facts("Backends")["data in C++"] == "built with Python 3.11.2"
    monkeypatch.setattr(doctor.host, "EXTENSION", "they were not built")
    assert facts("Backends")["data in C++"] == "they were not built; plain Python serves"
