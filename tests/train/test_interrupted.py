"""Commands that a signal ends, wherever: one line, nothing half written, and they go on."""

import json
import signal

import pytest

from wavalign_fast.cli import main
from wavalign_fast.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("toy_recipe")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
OPTIONS = ("train.steps=3", "train.checkpoint_every=1")


@pytest.fixture
def train(monkeypatch, tmp_path, capsys):
    """Trains the toy; status and what was written to stderr. Goes on with a run that is there."""
    monkeypatch.chdir(tmp_path)

    def run(name="it"):
        resume = ["--resume"] if (tmp_path / "runs" / name).exists() else []
        command = ["train", "--recipe", "toy", "--arms", "both,sft", "--name", name, *resume]
        status = main([*command, *OPTIONS])
        return status, capsys.readouterr().err

    return run


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


def same_as_uninterrupted(train, tmp_path, uninterrupted):
    """Whether the run, gone on with, has become what one without a signal is."""
    assert train() == (0, "")
    if not uninterrupted:
        assert train("whole") == (0, "")
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
    train, at_evaluation, tmp_path, uninterrupted, number, nth
):
    at_evaluation(number, nth)
    status, err = train()
    assert status == 128 + number
    assert err.startswith(f"wavalign-fast: interrupted by {number.name}") and err.count("\n") == 1
    assert not half_written(tmp_path)
    assert same_as_uninterrupted(train, tmp_path, uninterrupted)


def test_a_second_ctrl_c_ends_training_at_once_and_it_goes_on(
    train, tmp_path, monkeypatch, uninterrupted
):
    one_step = Trainer._one_step

    def stop_at_three(self, *args):
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second Ctrl-C was swallowed")
        one_step(self, *args)

    monkeypatch.setattr(Trainer, "_one_step", stop_at_three)
    status, err = train()
    assert status == 130
    assert err.startswith("wavalign-fast: interrupted by SIGINT") and err.count("\n") == 1
    monkeypatch.setattr(Trainer, "_one_step", one_step)
    assert same_as_uninterrupted(train, tmp_path, uninterrupted)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_while_training_says_how_to_go_on(
    train, tmp_path, monkeypatch, uninterrupted, number
):
    one_step = Trainer._one_step

    def stop_at_two(self, *args):
        one_step(self, *args)
        if self.step == 2:
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGTERM)  # as `timeout` does

    monkeypatch.setattr(Trainer, "_one_step", stop_at_two)
    status, err = train()
    assert status == 128 + number
    assert f"stopped by {number.name} after step 2; checkpoint saved in" in err
    assert "--resume" in err and err.count("\n") == 1
    monkeypatch.setattr(Trainer, "_one_step", one_step)
    assert same_as_uninterrupted(train, tmp_path, uninterrupted)
