"""The README: its code runs, its commands and links exist, and what it claims is so."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

import wavalign_fast as wf
from benchmarks.record import RESULTS
from wavalign_fast import cli

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
VOCAB, SPEECH_START = 40, 24


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


PYTHON = blocks("python")


class Tokenizer:
    """What `ModalityLayout.from_tokenizer` reads of a tokenizer."""

    eos_token_id = 3

    def get_vocab(self):
        text = {f"word{i}": i for i in range(SPEECH_START - 2)}
        audio = {f"<|audio_{i}|>": SPEECH_START + i for i in range(VOCAB - SPEECH_START)}
        ends = ("<|begin_of_audio|>", "<|end_of_audio|>")
        return text | {name: SPEECH_START - 2 + i for i, name in enumerate(ends)} | audio

    def __len__(self):
        return VOCAB


def small_model(seed):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(vocab_size=VOCAB, **sizes, **heads)
    )


def step(left):
    """Two prompts of 2 and 4 tokens, two rollouts each, and one demonstration.

    ``left``: the prompts are padded on the left to one length, as `generate` leaves them. Else the
    rows are padded on the right.
    """
    generator = torch.Generator().manual_seed(0)
    lengths, rows, masks = [2, 4], [], []
    for length in lengths:
        prompt = torch.randint(4, VOCAB, (length,), generator=generator)
        for completion in (3, 5):
            ids = torch.randint(4, VOCAB, (completion,), generator=generator)
            before = 4 - length if left else 0
            row, mask = torch.zeros(9, dtype=torch.int64), torch.zeros(9, dtype=torch.int64)
            row[before : before + length + completion] = torch.cat([prompt, ids])
            mask[before : before + length + completion] = 1
            rows.append(row)
            masks.append(mask)
    rows.append(torch.randint(4, VOCAB, (9,), generator=generator))
    masks.append(torch.ones(9, dtype=torch.int64))
    input_ids, attention_mask = torch.stack(rows), torch.stack(masks)
    labels = torch.full_like(input_ids, -100)
    labels[-1, 3:] = input_ids[-1, 3:]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "completion_mask": torch.tensor(2 * [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        "labels": labels,
        "rewards": torch.tensor([[1.0, 5.0], [4.0, 2.0]]),
        "prompt_lengths": torch.tensor(lengths),
    }


def execute(code, names):
    """The names after a block of the README has run."""
    scope = dict(names)
    exec(compile(code, str(ROOT / "README.md"), "exec"), scope)
    return scope


@pytest.fixture
def names():
    return {"tokenizer": Tokenizer(), "model": small_model(0), "reference": small_model(1)}


def first_block(names):
    return execute(PYTHON[0], names | step(left=False))


def test_the_first_snippet_gives_a_loss_with_gradients(names, capsys):
    scope = first_block(names)
    assert capsys.readouterr().out.count("tensor(") == 4
    assert scope["out"].loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in names["model"].parameters())
    assert scope["objective"].gate.value == scope["out"].rl_weight


def test_left_padding_gives_the_loss_of_right_padding(names):
    layout = first_block(names)["layout"]
    losses, gradients = [], []
    for left in (True, False):
        names["model"].zero_grad()
        scope = execute(
            PYTHON[1], names | {"torch": torch, "wf": wf, "layout": layout} | step(left)
        )
        losses.append(scope["out"].loss.item())
        gradients.append(names["model"].lm_head.weight.grad)
        assert scope["old_logp"].shape == scope["ref_logp"].shape == (4, 8)
        assert scope["batch"].old_logp is not None and scope["batch"].ref_logp is not None
        assert scope["out"].metrics["text_kl"] > 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


def test_micro_batches_add_up_to_the_step(names):
    scope = first_block(names)
    whole = names["model"].lm_head.weight.grad.clone()
    names["model"].zero_grad()
    parts = step(left=False)
    inputs, batches = [], []
    for prompt in (0, 1):
        rows = [2 * prompt, 2 * prompt + 1, *([4] if prompt else [])]
        inputs.append(parts["input_ids"][rows])
        batches.append(
            wf.HybridBatch.from_padded(
                inputs[-1],
                parts["completion_mask"][2 * prompt : 2 * prompt + 2],
                parts["labels"][rows],
                parts["rewards"][[prompt]],
                parts["prompt_lengths"][[prompt]],
            )
        )
    scope["objective"].gate = wf.MixingGate()
    execute(PYTHON[2], scope | {"inputs": inputs, "batches": batches})
    assert torch.allclose(names["model"].lm_head.weight.grad, whole, rtol=1e-4, atol=1e-7)


def test_every_python_block_is_run_here():
    assert len(PYTHON) == 3


def commands(*program):
    """The arguments of every call of ``program``, in blocks and in running text."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", "").splitlines()]
    lines += [text for text in re.findall("`([^`\n]+)`", TEXT) if text.startswith(program[0])]
    calls = []
    for line in lines:
        words = shlex.split(line, comments=True)
        ends = [i for i, word in enumerate(words) if word == "&&"] + [len(words)]
        for start, end in zip([0, *(i + 1 for i in ends)], ends, strict=False):
            if tuple(words[start : start + len(program)]) == program and end > start + len(program):
                calls.append(words[start + len(program) : end])
    return calls


OURS = [" ".join(map(shlex.quote, call)) for call in commands("wavalign-fast")]


@pytest.mark.parametrize("line", OURS)
def test_a_command_of_ours_is_one(line, tmp_path, monkeypatch, capsys):
    argv = shlex.split(line)
    cli._parse(argv)
    if argv[0] == "train":
        pytest.importorskip("pydantic")
        monkeypatch.chdir(tmp_path)
        assert cli.main([*(word for word in argv if word != "--resume"), "--print-config"]) == 0


def test_the_commands_are_found():
    assert {line.split()[0] for line in OURS} >= {"train", "say", "bench", "doctor", "config"}
    assert commands("make") and commands("python", "-m")


def test_other_commands_and_settings_are_there():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {call[0] for call in commands("make")} <= set(targets)
    for module, *_ in commands("python", "-m"):
        assert importlib.util.find_spec(module), module
    extras = set(re.findall(r"^([a-z-]+) = \[", PYPROJECT, re.MULTILINE))
    for named in re.findall(r"(?:wavalign-fast|\.)\[([a-z,]+)\]\"", TEXT):
        assert set(named.split(",")) <= extras
    assert set(re.findall(r"`(--[a-z-]+)[` ]", TEXT)) <= {"--no-build-isolation"}


def test_ci_runs_the_tests_that_the_readme_names():
    steps = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    named = {target for target, *_ in commands("make") if target.startswith("test")}
    assert {"test", "test-ladder"} <= named
    assert {f"make {target}" for target in named} <= set(steps)


def test_a_setting_in_running_text_is_one(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pydantic")
    monkeypatch.chdir(tmp_path)
    settings = re.findall(r"`([a-z_]+\.[a-z_.]+=[^`\s]+)`", TEXT)
    assert settings
    assert cli.main(["train", "--recipe", "spoken-sums", *settings, "--print-config"]) == 0


def test_links_and_pictures_lead_somewhere():
    links = re.findall(r"\]\(([^)\s]+)\)", TEXT) + re.findall(r'src(?:set)?="([^"]+)"', TEXT)
    anchors = {
        re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")
        for head in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    }
    assert len(links) > 10
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith("https://"):
            assert (ROOT / link).exists(), link


def test_every_page_is_linked_and_every_folder_is_on_the_map():
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name}" in TEXT, page.name
    for folder in (ROOT / "wavalign_fast").iterdir():
        if (folder / "__init__.py").exists():
            assert re.search(rf"^wavalign_fast/{folder.name}/ ", TEXT, re.MULTILINE), folder.name


def test_the_picture_of_the_report_is_small():
    assert (ROOT / "docs" / "images" / "report.png").stat().st_size < 250_000


def test_the_first_section_is_what_runs_where():
    assert re.search(r"^## (.*)$", TEXT, re.MULTILINE)[1] == "What runs where today"


def test_the_versions_wanted_are_those_of_the_package():
    first, last = re.search(r"Python 3\.(\d+)–3\.(\d+)", TEXT).groups()
    assert f'requires-python = ">=3.{first},<3.{int(last) + 1}"' in PYPROJECT
    for package in ("torch", "transformers"):
        floors = set(re.findall(rf"{package} ≥ ([\d.]+\d)", TEXT))
        assert len(floors) == 1, package
        assert re.search(rf'"{package}>={re.escape(floors.pop())}[",]', PYPROJECT), package


def test_it_says_that_no_gpu_has_run_as_long_as_none_has():
    records = [json.loads(path.read_text()) for path in RESULTS.rglob("*.json")]
    cases = [case for record in records for case in record.get("cases", [])]
    measured = any(case.get("device", "cpu") != "cpu" for case in cases)
    assert ("No GPU has run" not in TEXT) == measured
