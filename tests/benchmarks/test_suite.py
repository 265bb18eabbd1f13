"""`wavalign-fast bench`: what it runs, what it writes, and where it finds its modules."""

import importlib.util
import inspect
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks import bench_adversarial, bench_dpo
from wavalign_fast import bench_command, cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def suite(monkeypatch):
    """The module, with a page without plots, which take seconds and are tested elsewhere."""
    monkeypatch.setattr(bench_command._benchmarks("report.page"), "figures", lambda records: {})
    return bench_command._benchmarks("suite")


class Bench:
    """A benchmark that writes one record, then returns or raises ``ending``."""

    def __init__(self, name: str, ending: int | BaseException) -> None:
        self.name = name
        self.ending = ending
        self.options = []

    def run(self, options) -> int:
        from tests.benchmarks.synthetic import case

        self.options.append(options)
        record = {"benchmark": self.name, "format": 2, "cases": [case({"torch": 2.0})]}
        (options.directory / f"{self.name}.json").write_text(json.dumps(record))
        if isinstance(self.ending, BaseException):
            raise self.ending
        return self.ending


def test_the_command_runs_the_checkout_s_own_benchmarks(suite):
    assert Path(suite.__file__).samefile(ROOT / "benchmarks" / "suite.py")
    assert suite.__name__ == "wavalign_fast.benchmarks.suite"


def test_an_installed_copy_comes_before_the_checkout(tmp_path, monkeypatch):
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "suite.py").write_text("MARK = 'installed'")
    import wavalign_fast

    monkeypatch.setattr(wavalign_fast, "__path__", [*wavalign_fast.__path__, str(tmp_path)])
    # An import also leaves the module on its package.
    monkeypatch.setattr(wavalign_fast, "benchmarks", None, raising=False)
    with mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.startswith("wavalign_fast.benchmarks")]:
            del sys.modules[name]
        assert bench_command._benchmarks("suite").MARK == "installed"
    left = sys.modules.get("wavalign_fast.benchmarks.suite")
    assert left is None or not hasattr(left, "MARK")


def test_quick_reaches_every_benchmark_and_the_page_is_written(
    suite, monkeypatch, tmp_path, capsys
):
    benches = [Bench("linear_logprob", 0), Bench("hybrid_loss", 0)]
    monkeypatch.setattr(suite, "MODULES", benches)
    argv = ["bench", "--quick", "--device", "cpu", "--output", str(tmp_path / "out")]
    assert cli.main(argv) == 0
    for bench in benches:
        (options,) = bench.options
        assert options.quick and options.device == "cpu" and options.rounds >= 2
    out = capsys.readouterr().out
    assert "first, 2.00×" in out
    assert (tmp_path / "out" / "index.html").exists()
    assert str(tmp_path / "out" / "index.html") in out


def test_a_failed_check_sets_the_exit_code_and_the_rest_still_runs(suite, monkeypatch, tmp_path):
    benches = [Bench("linear_logprob", 1), Bench("dpo", 0)]
    monkeypatch.setattr(suite, "MODULES", benches)
    assert cli.main(["bench", "--quick", "--output", str(tmp_path)]) == 1
    assert len(benches[1].options) == 1


def test_an_interrupted_run_keeps_what_it_measured(suite, monkeypatch, tmp_path, capsys):
    benches = [Bench("linear_logprob", 0), Bench("dpo", KeyboardInterrupt()), Bench("growth", 0)]
    monkeypatch.setattr(suite, "MODULES", benches)
    assert cli.main(["bench", "--quick", "--output", str(tmp_path)]) == 130
    assert benches[2].options == []
    page = (tmp_path / "index.html").read_text()
    assert "Log-probabilities under a large head" in page and "Preference loss" in page


@pytest.mark.parametrize("main", [bench_dpo.main, bench_adversarial.main])
def test_a_wrong_provider_is_an_error_of_the_command_line(main, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--providers", "torch,trll"])
    assert ended.value.code == 2
    assert "--providers: provider: got 'trll', want one of ours-cpu" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "--device", "cuda"]) == 2
    assert "got cuda, want cpu on this machine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_present_gpu_is_measured_too(suite, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert suite.devices(None) == ["cpu", "cuda"]
    assert suite.devices("cuda") == ["cuda"]


def test_the_adversarial_suite_takes_an_output_directory(suite):
    if importlib.util.find_spec(suite.ADVERSARIAL) is None:
        pytest.skip("the adversarial suite is not part of this checkout")
    main = importlib.import_module(suite.ADVERSARIAL).main
    inspect.signature(main).bind(["--output", "x"])


@pytest.mark.slow
def test_a_benchmark_runs_as_a_module_of_the_checkout(tmp_path):
    command = [sys.executable, "-m", "benchmarks.bench_dpo", "--quick", "--rounds", "2"]
    command += ["--dtype", "fp32", "--providers", "ours-reference,torch"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (case,) = json.loads((tmp_path / "dpo.json").read_text())["cases"]
    assert case["sides"]["torch"]["outcome"] == "right"
    assert case["rates"]["gemm_flops_per_s"] > 0
