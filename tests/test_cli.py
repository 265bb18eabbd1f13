"""The command line: fast to answer, one line on stderr and exit code 2 for a mistake."""

import contextlib
import inspect
import os
import signal
import subprocess
import sys
import time
from importlib import metadata

import pytest

from wavalign_fast.cli import main
from wavalign_fast.config import listing
from wavalign_fast.config.layers import known_keys
from wavalign_fast.config.schema import RunConfig
from wavalign_fast.recipes import load_recipe
from wavalign_fast.recipes.spoken_sums.options import Options
from wavalign_fast.train.stop_signal import StopSignal

FORBIDDEN = ("torch", "transformers", "pydantic", "numpy", "rich")


def mistake(capsys, *argv):
    """Runs a command that must fail with exit code 2; returns its one line on stderr."""
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert status == 2, (out, err)
    assert err.count("\n") == 1 and err.startswith("wavalign-fast: error: "), err
    assert "Traceback" not in out + err
    return err.removeprefix("wavalign-fast: error: ").rstrip("\n")


def test_the_command_line_itself_imports_nothing_heavy():
    # `import wavalign_fast` may import torch for users of the losses; `cli` must add nothing.
    script = (
        "import sys, wavalign_fast; before = set(sys.modules); import wavalign_fast.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print([m for m in {FORBIDDEN} if m in set(sys.modules) - before])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("train", "say", "report", "build-recipe", "bench", "doctor", "config"):
        assert command in done.stdout


SUMS = ("train", "--recipe", "spoken-sums")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["trian"], "invalid choice: 'trian', wanted one of train, say, "),
        (["trian"], "; did you mean train?"),
        (["train", "--recipie", "x"], "unknown argument --recipie; did you mean --recipe?"),
        (["train", "--recipie=x"], "unknown argument --recipie=x; did you mean --recipe?"),
        (["say", "x", "--rn", "y", "--run", "z"], "unknown argument --rn; did you mean --run?"),
        (["--verison"], "unknown argument --verison; did you mean --version?"),
        ([*SUMS, "--train.steps=3"], "--train.steps=3; did you mean train.steps=VALUE, without"),
        ([*SUMS, "--eval-items", "3"], "did you mean train.eval_items=VALUE, without dashes?"),
        ([*SUMS, "--all-arms", "arm=rl-all"], "--all-arms and arm = 'rl-all' given, wanted one"),
        ([*SUMS, "--arms", "rl-text", "arm=rl-all"], "--arms rl-text and arm = 'rl-all' given"),
        ([*SUMS, "--seed", "3", "train.seed=4"], "--seed 3 and train.seed = 4 given, wanted one"),
        ([*SUMS, ""], "'' given, wanted a config file or key=value"),
        ([*SUMS, "."], ".: cannot be read: Is a directory"),
        ([*SUMS, "train.seed=!!bool x"], "train.seed: 'x' given, wanted a whole number"),
        ([*SUMS, "train=5", "train.steps=4"], "train: 5 given, wanted a group of keys (steps, "),
        ([*SUMS, "TRAIN.STEPS=3"], "unknown key TRAIN; did you mean train?"),
        (["bench", "--device", "cdua"], "invalid choice: 'cdua', wanted one of cpu, cuda; did you"),
        (
            ["train", "--recipe", "spoken-sum"],
            "recipe: 'spoken-sum' given, wanted one of dialogue, spoken-",
        ),
        (["train", "--recipe", "spoken-sum"], "; did you mean spoken-sums?"),
        (["build-recipe", "spoken-sum"], "; did you mean spoken-sums?"),
        (["config", "--recipe", "spoken-sum"], "; did you mean spoken-sums?"),
        (["config", "loss.gaet"], "unknown key 'loss.gaet'; did you mean loss.gate?"),
        ([*SUMS, "--arm", "wavaling"], "; did you mean wavalign?"),
        ([*SUMS, "train.stepz=3"], "unknown key train.stepz; did you mean train.steps?"),
        ([*SUMS, "task.demonstration=gold"], "; did you mean task.demonstrations?"),
        ([*SUMS, "task.demonstrations=golden"], "'golden' given, wanted one of imperfect, gold"),
        (
            [*SUMS, "task.judge_workers=0"],
            "task.judge_workers: 0 given, wanted a whole number >= 1",
        ),
        ([*SUMS, "task.asr_reward=.nan"], "task.asr_reward: nan given, wanted a number >= 0.0"),
        ([*SUMS, "train.steps"], "train.steps given, wanted key=value, e.g. train.steps=20"),
        ([*SUMS, "loss.backend=cdua"], "loss.backend: 'cdua' given, wanted one of auto, cpu"),
        ([*SUMS, "a=b.yaml"], "no such config file: a=b.yaml"),
        ([*SUMS, "./train.steps=2"], "no such config file: train.steps=2"),
        ([*SUMS, "x" * 9999], "xxx: cannot be read: File name too long"),
        ([*SUMS, "train.seed=" + "9" * 5000], "train.seed: '999"),
        (["build-recipe", "spoken-sums", "--output", "/sys/x"], "build-recipe: /sys/x/codebook."),
        (["bench", "--output", "/sys/x"], "bench: /sys/x/results.json: "),
        (["train", "recipe=3e8"], "recipe: '3e8' given, wanted one of dialogue, spoken-sums"),
        (["train", "--seed", "9" * 5000, "--recipe", "y"], "999' given, wanted a whole number"),
        (
            ["say", "x", "--run", "y", "--seed", "x"],
            "--seed: 'x' given, wanted a whole number >= 0",
        ),
        (["say", "x", "--run", "y", "--seed", "-1"], "'-1' given, wanted a whole number >= 0"),
        (["say", "x", "--run", "y", "--seed", "9" * 20], "99' given, wanted a whole number >= 0"),
        (["report", "a", "b"], "unknown argument b"),
        (["train"], "no recipe given, wanted --recipe NAME"),
        (["train", "none.yaml"], "no such config file: none.yaml"),
        (["train", "a.yaml", "b.yaml"], "2 config files given (a.yaml, b.yaml), wanted one"),
        (["train", "--seed", "x", "--recipe", "y"], "--seed: 'x' given, wanted a whole number"),
        (["train", "--arm", "a", "--all-arms"], "not allowed with argument"),
        (["train", "--resume", "--overwrite"], "not allowed with argument"),
        (["say", "hello", "--run", "none"], "no run in none: config.yaml is missing"),
        (["report", "none"], "no run in none: config.yaml is missing"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in mistake(capsys, *argv)
    assert list(tmp_path.iterdir()) == []


TYPOS = [
    ["train", "--recipe", "spoken-sum"],
    ["train", "none.yaml"],
    [*SUMS, "--arm", "x"],
    [*SUMS, "train.stepz=3"],
    [*SUMS, "task.hiden=3"],
    [*SUMS, "--name", "../up"],
    [*SUMS, "--resume"],
    [*SUMS, "--output", "file"],
    ["say", "x", "--run", "none"],
    ["report", "none"],
    ["build-recipe", "x"],
    ["config", "x"],
]


def test_a_mistake_is_found_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "file").touch()
    script = (
        "import sys, wavalign_fast.cli as cli\n"
        "heavy = ('torch', 'transformers', 'numpy')\n"
        f"for argv in {TYPOS}:\n"
        "    print(cli.main(argv), [m for m in heavy if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["2 []"] * len(TYPOS), done.stdout + done.stderr
    assert done.stderr.count("\n") == len(TYPOS)


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"wavalign-fast {metadata.version('wavalign-fast')}\n"


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_an_answer_that_cannot_be_written_is_no_success(option):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "wavalign_fast.cli", option],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == (
        "wavalign-fast: error: stdout cannot be written: No space left on device\n"
    )


def test_every_key_every_arm_and_every_recipe_is_listed(capsys):
    assert main(["config"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text
    flat = " ".join(text.split())
    for key in known_keys(RunConfig):
        assert f"{key} =" in text or f"{key}:" in text or f"  {key}\n" in text, key
    for group in (RunConfig, *(f.annotation for f in RunConfig.model_fields.values())):
        for field in getattr(group, "model_fields", {}).values():
            if hasattr(field.annotation, "model_fields"):
                continue  # a group is listed with its own text
            assert " ".join(field.description.replace("``", "`").split()) in flat
    for option in inspect.signature(Options).parameters:
        assert f"task.{option} = " in text
    # All recipes have this one, with texts of their own.
    assert flat.count("task.eos_as = speech") == 3
    assert "task.eos_as = speech (dialogue)" in flat and "= speech (spoken-sums)" in flat
    assert "task.data (dialogue)" in flat and "[[a whole number, …], …]" in flat
    assert "train.steps = 150 (dialogue: 200, spoken-sums: 200, wavalign: 2000)" in flat
    _, arms, _ = load_recipe("spoken-sums")
    for arm in arms:
        assert f"      {arm} " in text
    assert "rl-text anchor.rows=0 loss.mixing=1.0 task.eos_as=text" in flat


def test_one_group_or_key_is_listed_alone(capsys):
    assert main(["config", "loss.gate.ema", "anchor"]) == 0
    text = capsys.readouterr().out
    assert "loss.gate.ema = 0.9" in text and "anchor.rows = 32" in text
    assert "slope" not in text and "Recipes" not in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lr=1e-4.yaml", "train.steps: 3"),
        ("a=b", "train.steps: 3"),
        ("train.steps=7.yaml", "train.steps: 3"),
        ("dir=1/c.yaml", "train.steps: 3"),
    ],
)
def test_a_config_may_have_an_equals_sign_in_its_path(capsys, monkeypatch, tmp_path, name, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("recipe: spoken-sums\ntrain: {steps: 3}\n")
    for path in (name, f"./{name}", str(tmp_path / name)):
        assert main(["train", path, "--print-config"]) == 0
        assert "steps: 3\n" in capsys.readouterr().out


def test_a_file_that_could_be_a_setting_is_asked_about(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.steps=7").write_text("recipe: spoken-sums\n")
    line = mistake(capsys, *SUMS, "train.steps=7", "--print-config")
    assert line == "train.steps=7 is a file and a setting; write ./train.steps=7 for the file"
    assert main(["train", "./train.steps=7", "--print-config"]) == 0


def test_ctrl_c_is_said_and_has_its_exit_status(capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "list_settings", interrupted)
    assert main(["config"]) == 130
    assert "interrupted" in capsys.readouterr().err


BROKEN = {
    "ImportError": "raise ImportError('libfoo.so: cannot open shared object file')",
    "OSError": "raise OSError('libfoo.so: cannot open shared object file')",
    "RuntimeError": "raise RuntimeError('another processor')",
    "AttributeError": "import sys; sys.no_such_name",
    "SyntaxError": "(",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_package_that_fails_to_import_is_named(capsys, monkeypatch, tmp_path, kind):
    for name in ("rich", "rich.console"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "rich.py").write_text(BROKEN[kind])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    line = mistake(capsys, *SUMS, "--output", "runs")
    assert "rich" in line and ("cannot be imported" in line or "cannot be used" in line)
    assert sorted(path.name for path in tmp_path.glob("runs")) == []


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    def bug(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(listing, "list_settings", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["config"])


def test_a_missing_package_of_the_trainer_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wavalign_fast.train_command", None)
    with pytest.raises(ModuleNotFoundError):  # our own module missing is a bug: traceback
        main(["train", "--recipe", "x"])
    for module in ("train_command", "config.layers", "config.yaml"):
        monkeypatch.delitem(sys.modules, f"wavalign_fast.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "pip install 'wavalign-fast[train]'" in mistake(capsys, "train", "--recipe", "x")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_an_import_turned_into_its_own_error_is_a_signal(capsys, monkeypatch, number):
    def cut_off(args):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except KeyboardInterrupt as stop:
            raise ModuleNotFoundError("Could not import module", name="transformers") from stop

    monkeypatch.setattr("wavalign_fast.cli._config", cut_off)
    assert main(["config"]) == 128 + number
    assert capsys.readouterr().err == f"wavalign-fast: interrupted by {number.name}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_an_import_swallowed_ends_the_run_before_it_trains(
    capsys, monkeypatch, number
):
    def swallowed(args):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
            time.sleep(5)
        with StopSignal():
            raise AssertionError("trained")

    monkeypatch.setattr("wavalign_fast.cli._config", swallowed)
    assert main(["config"]) == 128 + number
    assert capsys.readouterr().err == f"wavalign-fast: interrupted by {number.name}\n"
