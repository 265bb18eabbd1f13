"""The command line: fast to answer, one line on stderr and exit code 2 for a mistake."""

import subprocess
import sys

import pytest

from wavalign_fast.cli import main

FORBIDDEN = ("torch", "transformers", "pydantic", "numpy", "rich")


def mistake(capsys, *argv):
    """The one line on stderr of a command that must fail with exit code 2."""
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
    # `import wavalign_fast` brings torch for the loss user; what `cli` adds to it must be nothing.
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
    for command in ("train", "say", "report", "build-recipe", "bench", "doctor"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--recipie", "x"], "unknown argument --recipie"),
        (["report", "a", "b"], "unknown argument b"),
        (["train"], "no recipe given, wanted --recipe NAME"),
        (["train", "none.yaml"], "no such config file: none.yaml"),
        (["train", "a.yaml", "b.yaml"], "2 config files given (a.yaml, b.yaml), wanted one"),
        (["train", "--seed", "x", "--recipe", "y"], "invalid int value: 'x'"),
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


def test_a_missing_package_of_the_trainer_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wavalign_fast.config_layers", None)
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ModuleNotFoundError):  # our own module missing is a bug: traceback
        main(["train", "--recipe", "x"])
    monkeypatch.delitem(sys.modules, "wavalign_fast.config_layers")
    assert "pip install 'wavalign-fast[train]'" in mistake(capsys, "train", "--recipe", "x")
