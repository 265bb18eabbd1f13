"""``wavalign-fast export`` writes a directory that transformers loads, of any checkpoint."""

import json
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.ranks import run_ranks
from tests.train.test_checkpoint_ranks import Run, model_of, on, same_bits, saved
from wavalign_fast.cli import main
from wavalign_fast.errors import UserError
from wavalign_fast.models import insert_adapters
from wavalign_fast.rollout.weights import merged_weights
from wavalign_fast.train import checkpoint_layouts
from wavalign_fast.train.export import copy_companions, export_run, model_directory

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "chat_template.jinja")


@pytest.fixture(scope="module", params=[(1, False), (2, False), (2, True)], ids=str)
def run_of(request, tmp_path_factory) -> tuple[Path, dict]:
    """A run saved by one or two ranks, with an untied or a tied head; and its weights."""
    world, tied = request.param
    place = tmp_path_factory.mktemp("run")
    state = saved(str(place), tied) if world == 1 else run_ranks(2, saved, str(place), tied)[0]
    (place / "config.yaml").touch()
    return place, state["at save"]


def loaded(directory: Path) -> dict:
    return AutoModelForCausalLM.from_pretrained(directory, dtype="auto").state_dict()


def test_the_exported_directory_has_the_weights_bit_for_bit(run_of, tmp_path, capsys):
    run, wanted = run_of
    assert main(["export", str(run), str(tmp_path / "new" / "out")]) == 0
    assert str(tmp_path / "new" / "out") in capsys.readouterr().out
    found = loaded(tmp_path / "new" / "out")
    weights = {name for name in wanted if name in found}
    assert len(weights) >= 26 and found.keys() - weights <= {"lm_head.weight"}
    assert all(torch.equal(found[name], wanted[name]) for name in weights)
    names = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    config = json.loads((tmp_path / "new" / "out" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"] and config["dtype"] == "float32"


def test_another_dtype_is_written_and_said(run_of, tmp_path):
    run, wanted = run_of
    assert main(["export", str(run), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    for name, weight in loaded(tmp_path / "out").items():
        assert weight.dtype == torch.bfloat16
        assert name not in wanted or torch.equal(weight, wanted[name].bfloat16())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_by_default_it_goes_into_the_run_and_can_be_written_again(run_of, tmp_path):
    run = shutil.copytree(run_of[0], tmp_path / "run")
    for _ in range(2):
        assert main(["export", str(run)]) == 0
    assert loaded(run / "model")
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint", "config.yaml", "model"]
    (run / "model" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"model/notes.txt would be overwritten"):
        export_run(run)


def test_an_older_checkpoint_is_exported_by_its_directory(run_of, tmp_path):
    export_run(run_of[0] / "checkpoint", tmp_path / "out")
    assert loaded(tmp_path / "out")


def test_nothing_is_written_over(run_of, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    for target, seen in (("out", "out/thesis.txt"), ("file", "file")):
        with pytest.raises(UserError, match=f"{seen} would be overwritten; wanted a new"):
            export_run(run_of[0], tmp_path / target)


def test_a_directory_that_cannot_be_written_is_named(run_of, tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "out")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(UserError, match=r"out cannot be written: out: Permission denied"):
        export_run(run_of[0], tmp_path / "out")


def test_a_run_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint/training_state.pt is missing"):
        export_run(tmp_path)


def test_the_files_of_the_tokenizer_come_along(run_of, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in (*TOKENIZER, "model.safetensors", "modeling_own.py", "README.md"):
        (source / name).write_text("{}" if name.endswith(".json") else name)
    (source / "tokenizer_folder").mkdir()
    run = shutil.copytree(run_of[0], tmp_path / "run")
    inner = run / "checkpoint" / "weights"
    copy_companions(str(source), inner if inner.is_dir() else run / "checkpoint")
    export_run(run, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names - {"config.json", "generation_config.json", "model.safetensors"} == {*TOKENIZER}


def test_a_checkpoint_has_the_tokenizer_of_the_model_that_it_began_with(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text("the words")
    run = Run(str(tmp_path / "run"))
    run.store.run_directory.mkdir()
    run.policy.model.name_or_path = str(source)
    run.save(1)
    assert (run.store.newest / "tokenizer.json").read_text() == "the words"
    monkeypatch.chdir(source)
    run.policy.model.name_or_path = ""
    run.save(2)
    assert not (run.store.newest / "tokenizer.json").exists()


def test_a_model_is_where_it_is_or_the_command_that_makes_it_is_named(run_of, tmp_path):
    run = shutil.copytree(run_of[0], tmp_path / "run")
    sharded = (run / "checkpoint" / "weights").is_dir()
    if sharded:
        with pytest.raises(UserError, match=f"not exported; .*: wavalign-fast export {run}"):
            model_directory(run)
        export_run(run)
    assert model_directory(run).name == ("model" if sharded else "checkpoint")
    contents = json.loads((run / "checkpoint" / "contents.json").read_text())
    (run / "checkpoint" / "contents.json").write_text(json.dumps({**contents, "step": 9}))
    if sharded:  # trained on since
        with pytest.raises(UserError, match="not exported"):
            model_directory(run)


def test_weights_of_another_model_are_refused(run_of, tmp_path):
    run = shutil.copytree(run_of[0], tmp_path / "run")
    if not (run / "checkpoint" / "weights").is_dir():
        pytest.skip("from_pretrained compares them itself")
    path = run / "checkpoint" / "weights" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 64}))
    with pytest.raises(UserError, match=r"another model: \S+mlp\S+ is \(32, 16\), wanted \(64"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Adapted(Run):
    """A run that trains LoRA adapters, of the head too."""

    def __init__(self, place: str, *, tied: bool = False, **options) -> None:
        import peft

        model = model_of(tied)
        names = ["q_proj", "lm_head"]
        insert_adapters(model, peft.LoraConfig(r=2, target_modules=names))
        super().__init__(place, model=model, **options)


def adapted(place: str, tied: bool) -> dict:
    run = Adapted(place, tied=tied)
    run.train(1)
    run.train(2)
    run.save(2)
    merged = {
        name: checkpoint_layouts.whole(w) for name, w in merged_weights(run.policy.model).items()
    }
    return {"adapters": run.state(), "merged": {name: w.clone() for name, w in merged.items()}}


def loaded_adapters(place: str, tied: bool) -> dict:
    run = Adapted(place, tied=tied)
    run.load()
    return run.state()


@pytest.mark.parametrize(("world", "tied"), [(1, False), (2, True)])
def test_adapters_alone_are_saved_and_are_merged_in_the_export(tmp_path, world, tied):
    pytest.importorskip("peft")
    wanted = on(world, adapted, str(tmp_path / "run"), tied)
    assert len(wanted["adapters"]) == 6 * 4 and all("lora" in name for name in wanted["adapters"])
    for other in (1, 2):
        assert same_bits(
            on(other, loaded_adapters, str(tmp_path / "run"), tied), wanted["adapters"]
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # those of peft about a tied head
        export_run(tmp_path / "run", tmp_path / "out", base=lambda: model_of(tied))
    found = loaded(tmp_path / "out")
    assert found.keys() == wanted["merged"].keys()
    for name, weight in wanted["merged"].items():
        torch.testing.assert_close(found[name], weight)
    assert not torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    with pytest.raises(UserError, match="adapters alone; wanted the model that they are for"):
        export_run(tmp_path / "run", tmp_path / "other")


@pytest.mark.parametrize(("world", "tied"), [(1, False), (2, True)])
def test_the_adapters_of_a_run_are_loaded_by_peft(tmp_path, monkeypatch, capsys, world, tied):
    """Peft's model over the base has the logits of the merged export; nothing needs it to write."""
    peft = pytest.importorskip("peft")
    on(world, adapted, str(tmp_path / "run"), tied)
    model_of(tied).save_pretrained(tmp_path / "base")
    (tmp_path / "run" / "config.yaml").write_text(
        f"recipe: spoken-sums\nmodel: {{path: {tmp_path / 'base'}}}\n"
    )
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "peft", None)
        out = tmp_path / "out"
        assert main(["export", str(tmp_path / "run"), str(out), "--adapters"]) == 0
    assert f"adapters: {out}" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    export_run(tmp_path / "run", tmp_path / "merged", base=lambda: model_of(tied))
    ids = torch.arange(12).view(2, 6)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")
        loaded_by_peft = peft.PeftModel.from_pretrained(model_of(tied), out)
        by_its_config = peft.AutoPeftModelForCausalLM.from_pretrained(out)
        wanted, before = merged(ids).logits, model_of(tied)(ids).logits
        assert (wanted - before).abs().max() > 0.1
        for model in (loaded_by_peft, by_its_config):
            torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-4, atol=1e-5)


def test_adapters_that_there_are_none_of_are_named(run_of, tmp_path, capsys):
    run = str(run_of[0])
    (run_of[0] / "config.yaml").write_text("recipe: spoken-sums\n")
    assert main(["export", run, str(tmp_path / "out"), "--adapters"]) == 2
    assert "checkpoint has no adapters, wanted that of a run with" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", run, "--adapters"])
    assert "--adapters: DIR is missing, wanted a new directory" in capsys.readouterr().err
