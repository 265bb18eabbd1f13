"""Family directories are read, refused and written back, whole and in shards."""

import filecmp
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.models.families.golden import GOLDEN, opened
from tests.ranks import run_ranks
from wavalign_fast.errors import DamagedFileError, UserError
from wavalign_fast.models import (
    add_lora,
    decoder_layers,
    empty_model,
    fill_shards,
    has_lora,
    load_checkpoint,
)
from wavalign_fast.models.families import vita_audio
from wavalign_fast.models.families.checkpoint import load_family, read_aside
from wavalign_fast.models.families.encoders import stored_tensors
from wavalign_fast.models.families.export import export_family, export_plain
from wavalign_fast.models.families.registry import (
    family_of,
    find_family,
    named_family,
    storing_family,
)
from wavalign_fast.models.lora import weights_below_lora

CASES = {
    "vita_audio": "vita_audio", "vita_audio_plus": "vita_audio", "glm4_voice": "glm4_voice",
    "step_audio_2": "step_audio_2", "covo_audio": "covo_audio", "kimi_audio": "kimi_audio",
}  # fmt: skip
TWO_STREAMS = "kimi_audio"


def copied(case, directory, *, files=2):
    """A copy of a golden directory, its weights in bfloat16 and in several files."""
    directory = directory / case
    shutil.copytree(GOLDEN / case, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(GOLDEN / case / "model.safetensors")
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    weight_map = {}
    for number in range(files):
        part = dict(sorted(tensors.items())[number::files])
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def changed(directory, name, change):
    """Changes a JSON file, or the tensors of a file."""
    if name.endswith(".json"):
        content = json.loads((directory / name).read_text())
        change(content)
        (directory / name).write_text(json.dumps(content))
    else:
        tensors = load_file(directory / name)
        change(tensors)
        save_file(tensors, directory / name)


def same_files(one, other):
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in other.iterdir()}
    assert filecmp.cmpfiles(one, other, names, shallow=False)[1:] == ([], [])


@pytest.mark.parametrize("case", CASES)
def test_the_files_tell_the_family(case):
    assert find_family(GOLDEN / case).NAME == storing_family(GOLDEN / case).NAME == CASES[case]


@pytest.mark.parametrize("case", CASES)
def test_what_is_loaded_and_saved_is_the_same_to_the_byte(tmp_path, case):
    source = copied(case, tmp_path)
    model = load_checkpoint(source)
    assert model.dtype == torch.bfloat16
    target = tmp_path / "again"
    export_family(source, target, dict(model.named_parameters()))
    for path in list(source.iterdir()):
        assert (target / path.name).read_bytes() == path.read_bytes(), path.name
    # Weights in float32 hold them too.
    wide = dict(load_checkpoint(source, dtype=torch.float32).named_parameters())
    export_family(source, tmp_path / "wide", wide)
    same_files(target, tmp_path / "wide")
    loaded = load_family(target)
    assert all(torch.equal(w, loaded.model.state_dict()[n]) for n, w in model.state_dict().items())


@pytest.mark.parametrize(
    ("case", "beside"), [("step_audio_2", "adapter."), ("covo_audio", "audio_adapter.")]
)
def test_the_dtype_is_that_of_the_language_model(tmp_path, case, beside):
    directory = copied(case, tmp_path, files=1)
    (directory / "model.safetensors.index.json").unlink()
    tensors = load_file(directory / "model-00001-of-00001.safetensors")
    tensors = {n: t.float() if n.startswith(beside) else t for n, t in tensors.items()}
    save_file(tensors, directory / "model.safetensors")
    model = load_family(directory).model
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.config.dtype == torch.bfloat16
    assert load_family(directory, torch.float32).model.dtype == torch.float32


@pytest.mark.parametrize("case", CASES)
def test_what_was_trained_is_exported(tmp_path, case):
    source = GOLDEN / case
    model = load_checkpoint(source)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight += number + 1
    aside = {n: t + 0.5 for n, t in read_aside(source, load_family(source).table, "mtp_").items()}
    export_family(source, tmp_path / "out", dict(model.named_parameters()), aside=aside)
    again = load_family(tmp_path / "out")
    for name, weight in model.named_parameters():
        assert torch.equal(again.model.get_parameter(name), weight), name
    kept = read_aside(tmp_path / "out", again.table)
    for name, tensor in read_aside(source, again.table).items():
        assert torch.equal(kept[name], aside.get(name, tensor)), name


def test_two_streams_have_no_plain_export(tmp_path):
    weights = dict(load_checkpoint(GOLDEN / TWO_STREAMS).named_parameters())
    with pytest.raises(UserError, match="has no plain form in transformers"):
        export_plain(GOLDEN / TWO_STREAMS, tmp_path / "plain", weights)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", [case for case in CASES if case != TWO_STREAMS])
def test_the_plain_export_is_known_again(tmp_path, case):
    model = load_checkpoint(GOLDEN / case)
    export_plain(GOLDEN / case, tmp_path / "plain", dict(model.named_parameters()))
    architecture = "GlmForCausalLM" if case == "glm4_voice" else "Qwen2ForCausalLM"
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert config["architectures"] == [architecture] and "auto_map" not in config
    again = load_family(tmp_path / "plain")
    assert (again.family.NAME, storing_family(tmp_path / "plain")) == (CASES[case], None)
    plain = load_checkpoint(tmp_path / "plain")
    for name, weight in model.state_dict().items():
        assert torch.equal(plain.state_dict()[name], weight), name
        assert torch.equal(again.model.state_dict()[name], weight), name
    files = opened(case)
    assert again.files.layout == files.layout
    for text in ("It costs 12345 euros.\n\nThanks, it's  fine", "<|audio_7|>ä<|user|>"):
        assert again.files.tokenizer(text)["input_ids"] == files.tokenizer(text)["input_ids"]


def test_a_converted_model_without_our_mark_is_known_by_its_codes(tmp_path):
    model = load_checkpoint(GOLDEN / "vita_audio")
    export_plain(GOLDEN / "vita_audio", tmp_path / "plain", dict(model.named_parameters()))
    changed(tmp_path / "plain", "config.json", lambda config: config.pop("wavalign_family"))
    assert family_of(tmp_path / "plain").NAME == "vita_audio"
    assert storing_family(tmp_path / "plain") is None


def test_an_export_replaces_nothing_and_takes_only_its_own_weights(tmp_path):
    source = GOLDEN / "vita_audio"
    weights = dict(load_checkpoint(source).named_parameters())
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists, wanted a new directory"):
        export_family(source, tmp_path / "there", weights)
    with pytest.raises(UserError, match=r"has no tensor mtp_projs\.9\.weight beside"):
        export_family(
            source, tmp_path / "new", weights, aside={"mtp_projs.9.weight": torch.ones(1)}
        )
    with pytest.raises(UserError, match=r"mtp_projs\.0\.weight has the shape \(1,\), wanted"):
        export_family(
            source, tmp_path / "new", weights, aside={"mtp_projs.0.weight": torch.ones(1)}
        )
    with pytest.raises(UserError, match=r"of another model: lm_head\.weight is .*wanted no such"):
        some = {name: weight for name, weight in weights.items() if name != "lm_head.weight"}
        export_family(source, tmp_path / "new", some)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("case", "name", "change", "wanted"),
    [
        ("vita_audio", "config.json", {"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ("vita_audio", "config.json", {"num_hidden_layers": 3}, "num_hidden_layers 3 with 3 MTP"),
        ("vita_audio", "config.json", {"num_hidden_layers": 4}, "not known: model.layers.4"),
        (
            "vita_audio",
            "config.json",
            {"hidden_size": 48},
            r"of another shape: .*k_proj.*instead of \(24, 48\)",
        ),
        ("vita_audio", "config.json", {"hidden_size": None}, "hidden_size is missing"),
        ("glm4_voice", "config.json", {"num_layers": 3}, r"missing: .*layers\.2\.mlp"),
        ("glm4_voice", "config.json", {"multi_query_group_num": 4}, "query_key_value.*instead of"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_named(tmp_path, case, name, change, wanted):
    source = copied(case, tmp_path)
    changed(source, name, lambda config: config.update(change))
    for load in (load_checkpoint, lambda path: empty_model(path, dtype=torch.float32), load_family):
        with pytest.raises(UserError, match=wanted):
            load(source)


@pytest.mark.parametrize(
    ("case", "change", "wanted"),
    [
        ("vita_audio", {"surplus.weight": (2,)}, "not known: surplus.weight"),
        ("vita_audio", {"mtp_projs.1.weight": None}, r"missing: mtp_projs\.1\.weight"),
        ("vita_audio", {"model.norm.weight": None}, r"missing: model\.norm\.weight"),
        (
            "vita_audio",
            {"mtp_projs.1.weight": (64, 64)},
            r"mtp_projs\.1\.weight \(64, 64\) instead",
        ),
        ("vita_audio_plus", {"model.audio_projection.mlp.0.weight": None}, "missing: .*mlp.0"),
        ("vita_audio_plus", {"model.audio_model.model.embed.weight": None}, "missing: .*embed"),
        ("glm4_voice", {"lm_head.weight": (576, 64)}, "not known: lm_head.weight"),
        ("glm4_voice", {"transformer.output_layer.weight": (560, 64)}, "output_layer.*instead of"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, case, change, wanted):
    source = copied(case, tmp_path, files=1)
    (source / "model.safetensors.index.json").unlink()
    file = source / "model-00001-of-00001.safetensors"

    def put(tensors):
        for name, shape in change.items():
            tensors.pop(name, None)
            if shape:
                tensors[name] = torch.zeros(shape)

    changed(source, file.name, put)
    file.rename(source / "model.safetensors")
    with pytest.raises(UserError, match=wanted):
        load_checkpoint(source)


def test_a_missing_file_of_weights_is_named(tmp_path):
    source = copied("vita_audio", tmp_path)
    (source / "model-00002-of-00002.safetensors").unlink()
    for load in (load_checkpoint, lambda path: empty_model(path, dtype=torch.float32)):
        with pytest.raises(
            UserError, match=r"the file model-00002-of-00002\.safetensors is missing"
        ):
            load(source)


def test_damaged_files_of_weights_are_named(tmp_path):
    source = copied("glm4_voice", tmp_path)
    file = source / "model-00001-of-00002.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    for load in (load_checkpoint, load_family, lambda path: empty_model(path, dtype=torch.float32)):
        with pytest.raises(DamagedFileError, match=r"00001-of-00002\.safetensors cannot be read"):
            load(source)
    with pytest.raises(DamagedFileError, match=r"00001-of-00002\.safetensors cannot be read"):
        stored_tensors(source, ["transformer."])
    file.write_bytes(whole)
    load_family(source)
    changed(source, "model.safetensors.index.json", lambda index: index.pop("weight_map"))
    with pytest.raises(DamagedFileError, match=r"index\.json has no weight_map"):
        load_family(source)


def rename_token(old, new):
    def change(tokenizer):
        for token in tokenizer["added_tokens"]:
            token["content"] = {old: new, new: old}.get(token["content"], token["content"])

    return change


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (("<|audio_9|>", "<|other|>"), r"<\|audio_9\|> has id missing, wanted 563"),
        (("<|audio_9|>", "<|audio_8|>"), r"<\|audio_8\|> has id 563, wanted 562"),
        (("<|begin_of_audio|>", "<|end_of_audio|>"), r"<\|begin_of_audio\|> at id 544, wanted 543"),
        (("<|image|>", "<|other|>"), r"no token <\|image\|>"),
        (("<|im_end|>", "<|other|>"), r"no token <\|im_end\|>"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path, change, wanted):
    source = tmp_path / "vita"
    shutil.copytree(GOLDEN / "vita_audio", source)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (source / name).unlink()
    changed(source, "tokenizer.json", rename_token(*change))
    with pytest.raises(UserError, match=wanted):
        load_family(source)


@pytest.mark.parametrize(
    ("case", "field"), [("vita_audio", "vocab_size"), ("glm4_voice", "padded_vocab_size")]
)
def test_a_tokenizer_longer_than_the_embedding_is_refused(tmp_path, case, field):
    source = copied(case, tmp_path)
    changed(source, "config.json", lambda config: config.update({field: 560}))
    with pytest.raises(UserError, match=r"longer than the embedding: <\|audio_63\|> has id"):
        load_family(source)


def test_a_plain_model_is_of_no_family(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", '
        '"num_nextn_predict_layers": 1}'
    )
    assert find_family(tmp_path) is None
    with pytest.raises(UserError, match=r"no known family: .*DeepseekV3.*known: vita_audio, glm4"):
        family_of(tmp_path)


def test_a_users_own_family_loads_and_exports(tmp_path):
    """A file of the same shape serves a directory that tells no family of ours."""
    source = copied("vita_audio", tmp_path)
    config = {"architectures": ["MineForCausalLM"], "model_type": "mine"}
    changed(source, "config.json", lambda known: known.update(config))
    code = Path(vita_audio.__file__).read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(code.replace('NAME = "vita_audio"', 'NAME = "mine"'))
    mine = named_family(str(tmp_path / "mine.py"))
    with pytest.raises(UserError, match="no known family"):
        load_family(source)
    loaded = load_family(source, family=mine)
    assert loaded.family.NAME == "mine" and loaded.files.layout.first_code == 554
    wanted = dict(load_checkpoint(source, family=mine).named_parameters())
    assert all(torch.equal(w, wanted[n]) for n, w in loaded.model.named_parameters())
    empty = empty_model(source, dtype=torch.bfloat16, family=mine)
    add_lora(empty, rank=2, alpha=2, targets=[], head=True, seed=0)
    empty.to_empty(device="cpu")
    fill_shards(empty, source, family=mine)
    assert has_lora(empty)
    below = weights_below_lora(empty)
    assert below.keys() == wanted.keys()
    assert all(torch.equal(weight, wanted[name]) for name, weight in below.items())
    export_family(source, tmp_path / "out", wanted, family=mine)
    same_files(source, tmp_path / "out")


def read_in_shards(directories):
    """Whole weights of models that each rank reads its rows of."""
    found = []
    for directory in directories:
        model = empty_model(directory, dtype=torch.float32)
        assert all(weight.is_meta for weight in model.parameters())
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        for part in (*decoder_layers(model), model):
            fully_shard(part, mesh=mesh)
        model.to_empty(device="cpu")
        fill_shards(model, directory)
        found.append({n: w.full_tensor().detach() for n, w in model.named_parameters()})
    return found


def test_shards_together_are_the_model(tmp_path):
    directories = [copied(case, tmp_path) for case in CASES]
    models = [load_checkpoint(directory, dtype=torch.float32) for directory in directories]
    for found in run_ranks(3, read_in_shards, directories):
        for model, weights in zip(models, found, strict=True):
            wanted = dict(model.named_parameters())
            assert weights.keys() == wanted.keys()
            assert all(torch.equal(weights[name], wanted[name]) for name in weights)
