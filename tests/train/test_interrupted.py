"""A signal ends a command with one line and nothing half written, and the run can be resumed."""

import json
import signal

import pytest

pytestmark = pytest.mark.usefixtures("toy_recipe", "in_tmp_path")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
OPTIONS = ("train.steps=3", "train.checkpoint_every=1")


@pytest.fixture
def run(in_tmp_path, train_toy, capsys):
    """Trains two arms, or resumes the run of that name; returns exit status and stderr."""

    def train(name="it"):
        resume = ["--resume"] if (in_tmp_path / "runs" / name).exists() else []
        status = train_toy("--arms", "both,sft", "--name", name, *resume, *OPTIONS)
        return status, capsys.readouterr().err

    return train


@pytest.fixture
def at_evaluation(monkeypatch, toy_task):
    """Sends a signal in the n-th evaluation of the process."""

    def send(number, nth):
        calls = []
        evaluate = toy_task.evaluate

        def interrupted(self, *args, **options):
            calls.append(None)
            if len(calls) == nth:
                signal.raise_signal(number)
            return evaluate(self, *args, **options)

        monkeypatch.setattr(toy_task, "evaluate", interrupted)

    return send


@pytest.fixture(scope="module")
def uninterrupted():
    """Filled by the first test that needs it."""
    return {}


def same_as_uninterrupted(run, tmp_path, uninterrupted):
    """Whether the resumed run equals the uninterrupted one."""
    assert run() == (0, "")
    if not uninterrupted:
        assert run("whole") == (0, "")
        uninterrupted.update(results(tmp_path / "runs/whole"))
    return results(tmp_path / "runs/it") == uninterrupted


def results(root):
    return {
        arm: (
            (root / arm / "checkpoint/model.safetensors").read_bytes(),
            json.loads((root / arm / "evaluation.json").read_text())["final"],
            len((root / arm / "metrics.jsonl").read_text().splitlines()),
        )
        for arm in ("both", "sft")
    }


def half_written(root):
    return [path for path in root.rglob("*") if ".tmp" in path.name]


@pytest.mark.parametrize(
    ("number", "nth"),
    [*((number, 1) for number in SIGNALS), (signal.SIGINT, 2), (signal.SIGTERM, 3)],
    ids=["SIGINT-base", "SIGTERM-base", "SIGHUP-base", "SIGINT-first-arm", "SIGTERM-second-arm"],
)
def test_a_signal_while_a_model_is_evaluated(
    run, at_evaluation, tmp_path, uninterrupted, number, nth
):
    at_evaluation(number, nth)
    status, err = run()
    assert status == 128 + number
    assert err.startswith(f"wavalign-fast: interrupted by {number.name}") and err.count("\n") == 1
    assert not half_written(tmp_path)
    assert same_as_uninterrupted(run, tmp_path, uninterrupted)


def test_a_second_ctrl_c_ends_training_at_once_and_it_goes_on(
    run, stop_at, tmp_path, uninterrupted
):
    stop_at(2, signal.SIGINT, signal.SIGINT)
    status, err = run()
    assert status == 130
    # If the second one were swallowed, training would print where it saved its checkpoint.
    assert err.startswith("wavalign-fast: interrupted by SIGINT") and err.count("\n") == 1
    assert same_as_uninterrupted(run, tmp_path, uninterrupted)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_while_training_says_how_to_go_on(run, stop_at, tmp_path, uninterrupted, number):
    stop_at(2, number, signal.SIGTERM)  # as `timeout` does
    status, err = run()
    assert status == 128 + number
    assert f"stopped by {number.name} after step 2; checkpoint saved in" in err
    assert "--resume" in err and err.count("\n") == 1
    assert same_as_uninterrupted(run, tmp_path, uninterrupted)
