"""The result files: their schema, the replacement of cases, and the slopes of growth."""

import json
import math
import re
import subprocess

import pytest

from benchmarks import bench_growth, bench_linear_logprob, commit, record
from benchmarks.options import Options, parse
from benchmarks.report.plots import COMPARED
from tests.benchmarks.synthetic import case
from wavalign_fast.checkout import checkout_commit

SIDE_FIGURES = {"wall_s", "wall_quartiles_s", "cpu_s", "wall_ratio_to"}


def complaints(found: dict) -> list[str]:
    """What is wrong with the record of a comparison."""
    problems = []
    if found.get("format") != record.FORMAT:
        problems.append(f"format {found.get('format')}")
    keys = [record.case_key(one) for one in found["cases"]]
    if len(set(keys)) < len(keys):
        problems.append("a case is there twice")
    for one, key in zip(found["cases"], keys, strict=True):
        missing = {"title", "source", "hidden", "vocab", "live"} - set(one["shape"])
        missing |= {"commit", "date", "torch", "cpu"} - set(one["machine"])
        for name, side in one["sides"].items():
            if side["outcome"] not in ("right", "wrong", "error", "absent"):
                problems.append(f"{key} {name}: outcome {side['outcome']}")
            if side["outcome"] == "right":
                missing |= (SIDE_FIGURES | {"label"}) - set(side)
        if missing:
            problems.append(f"{key}: no {sorted(missing)}")
        if not any(side.get("ours") for side in one["sides"].values()):
            problems.append(f"{key}: nothing of ours")
    return problems


@pytest.mark.parametrize("name", [*COMPARED, "growth"])
def test_the_committed_records_have_the_schema(name):
    found = record.load(name)
    assert found is None or complaints(found) == []


def test_a_bad_record_is_found():
    good = {"format": 2, "cases": [case({"torch": 2.0})]}
    assert complaints(good) == []
    assert complaints({**good, "format": 1})
    assert complaints({**good, "cases": 2 * good["cases"]})
    bad = case({"torch": 2.0})
    del bad["sides"]["torch"]["cpu_s"]
    assert "cpu_s" in complaints({**good, "cases": [bad]})[0]


def test_a_case_replaces_an_earlier_one_with_the_same_key(tmp_path):
    for wall in (2.0, 3.0):
        record.add_case("x", case({"torch": wall}), tmp_path)
    record.add_case("x", case({"torch": 4.0}, dtype="fp32"), tmp_path)
    record.add_case("x", case({"torch": 5.0}, name="other"), tmp_path)
    found = record.load("x", tmp_path)
    assert [one["sides"]["torch"]["wall_s"] for one in found["cases"]] == [3.0, 4.0, 5.0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_failed_write_leaves_the_old_record(tmp_path):
    record.save("x", {"a": 1}, tmp_path)
    with pytest.raises(TypeError):
        record.save("x", {"a": object()}, tmp_path)
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_benchmark_that_did_not_run_has_no_record(tmp_path):
    assert record.load("x", tmp_path) is None


def test_the_machine_names_its_software():
    facts = record.machine()
    assert facts["torch"] and facts["cores"] >= 1 and facts["date"].count("-") == 2
    json.dumps(facts)


def test_only_changes_of_code_make_a_checkout_dirty(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    assert checkout_commit(tmp_path, exclude=commit.WRITTEN) is None
    written = ["README.md", "docs/x.md", "benchmarks/results/x.json", "benchmarks/plots/x.png"]
    for name in (*written, "benchmarks/results.html", "benchmarks/bench.py", "csrc/x.cpp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    clean = checkout_commit(tmp_path, exclude=commit.WRITTEN)
    assert re.fullmatch("[0-9a-f]{7}", clean)
    for name in (*written, "benchmarks/results.html"):
        (tmp_path / name).write_text("after")
        assert checkout_commit(tmp_path, exclude=commit.WRITTEN) == clean, name
    for name in ("benchmarks/bench.py", "csrc/x.cpp"):
        (tmp_path / name).write_text("after")
        assert checkout_commit(tmp_path, exclude=commit.WRITTEN) == f"{clean}-dirty"
        git("checkout", name)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_slope_of_a_power_is_its_exponent(power):
    points = [(x, 3.0 * x**power) for x in (1.0, 2.0, 8.0, 64.0)]
    assert math.isclose(bench_growth.slope(points), power, abs_tol=1e-12)


def test_only_measured_sides_have_slopes(tmp_path):
    for value in (256, 512, 1024):
        # Plain torch is absent beyond its cap; a single point has no slope.
        rivals = {"torch": 7.0} if value == 256 else {}
        point = case(rivals, ours=float(value), name=f"rows-{value}")
        point["shape"] |= {"axis": "rows", "rows": value}
        record.add_case("growth", point, tmp_path)
    bench_growth.add_slopes(tmp_path)
    slopes = record.load("growth", tmp_path)["slopes"]
    assert set(slopes) == {"rows"}
    assert "torch" not in slopes["rows"]
    assert slopes["rows"]["ours-cpu"] == pytest.approx({"time": 1.0, "extra_memory": 0.0})


def test_plain_torch_stops_at_the_memory_cap(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_growth, "MEMORY_CAP", 1)
    options = Options(quick=True, dtypes=("bf16",), rounds=2, directory=tmp_path)
    assert bench_growth.run(options) == 0
    cases = record.load("growth", tmp_path)["cases"]
    rows = [one for one in cases if one["shape"]["axis"] == "rows"]
    if rows[0]["sides"]["torch"]["extra_bytes_beyond_gradients"] is None:
        pytest.skip("this kernel does not let a process reset its peak")
    assert rows[0]["sides"]["torch"]["outcome"] == "right"
    assert [one["sides"]["torch"]["outcome"] for one in rows[1:]] == ["absent", "absent"]
    assert "the cap is" in rows[1]["sides"]["torch"]["detail"]
    assert complaints({"format": 2, "cases": cases}) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rounds", "1"], "--rounds: got 1, want >= 2"),
        (["--shape", "none"], "invalid choice: 'none'"),
        (["--save", "--output", "x"], "not allowed with"),
    ],
)
def test_a_mistake_on_the_command_line(argv, message, capsys):
    with pytest.raises(SystemExit):
        parse("", shapes=("a", "b"), argv=argv)
    assert message in capsys.readouterr().err


def test_options_of_the_command_line(tmp_path):
    options = parse("", shapes=("a", "b"), argv=["--shape", "b", "--dtype", "fp32", "--save"])
    assert (options.shapes, options.dtypes) == (("b",), ("fp32",))
    assert options.directory == record.RESULTS
    assert parse("", argv=["--providers", "torch,trl"]).providers == ("torch", "trl")
    assert parse("", argv=[]).directory is None
    options = parse("", operations=("logp", "mean CE"), argv=["--operation", "mean CE"])
    assert options.operations == ("mean CE",)


def test_only_the_wanted_operations_are_measured():
    options = Options(quick=True, operations=("logp",), dtypes=("fp32",), providers=("torch",))
    (build,) = bench_linear_logprob.cases(options)
    assert build().operation == "logp"
