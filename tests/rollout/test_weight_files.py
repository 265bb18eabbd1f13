"""A policy's weights as a transformers directory, written by one rank of several."""

import json

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.ranks import run_ranks
from wavalign_fast.models import add_lora
from wavalign_fast.rollout import weight_files
from wavalign_fast.rollout.weight_files import write_model

IDS = torch.tensor([[2, 3, 4, 5]])


def tiny(*, tied: bool = False) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return Qwen2ForCausalLM(config).eval()


def read(directory, dtype="auto"):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


@torch.no_grad()
def check_same(model, directory) -> None:
    there = read(directory)
    torch.testing.assert_close(there(IDS).logits, model(IDS).logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_written_is_the_model(tied, tmp_path) -> None:
    model = tiny(tied=tied)
    write_model(model, tmp_path)
    check_same(model, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["Qwen2ForCausalLM"]
    names = json.loads((tmp_path / weight_files.INDEX_FILE).read_text())["weight_map"]
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= names.keys()
    assert written["tie_word_embeddings"] is False  # vLLM would not update a tied head


def test_weights_are_cast_and_the_model_is_not(tmp_path) -> None:
    model = tiny()
    write_model(model, tmp_path, dtype=torch.bfloat16)
    there = read(tmp_path)
    assert there.dtype == torch.bfloat16
    assert model.dtype == torch.float32
    for name, weight in there.named_parameters():
        assert torch.equal(weight, model.get_parameter(name).bfloat16())


def test_files_are_pieces(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(weight_files, "PIECE_BYTES", 1000)
    model = tiny()
    write_model(model, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    check_same(model, tmp_path)


@pytest.mark.parametrize("head", [False, True])
def test_adapters_are_merged(head, tmp_path) -> None:
    """With an adapter the head of a tied model is a matrix of its own."""
    model = tiny(tied=head)
    add_lora(model, rank=2, alpha=4, targets=[], head=head, seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_()
    write_model(model, tmp_path)
    check_same(model, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["tie_word_embeddings"] is False


def written_by_ranks(directory):
    model = tiny()
    mesh = init_device_mesh("cpu", (2,))
    rounded = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=rounded)
    fully_shard(model, mesh=mesh, mp_policy=rounded)
    with torch.no_grad():
        model(IDS)  # leaves the root's weights whole, in bfloat16
    rank = torch.distributed.get_rank()
    write_model(model, directory if rank == 0 else None)
    return rank


def test_ranks_gather_and_one_writes(tmp_path) -> None:
    assert run_ranks(2, written_by_ranks, tmp_path) == [0, 1]
    there = read(tmp_path)
    for name, weight in tiny().named_parameters():
        assert torch.equal(there.get_parameter(name), weight)


def failing_on_one(directory):
    weight_files.PIECE_BYTES = 1000
    model = tiny()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    rank = torch.distributed.get_rank()
    try:
        write_model(model, directory / "absent" if rank == 0 else None)
    except OSError as error:
        return type(error).__name__
    return "written"


def test_a_rank_that_cannot_write_keeps_no_other_waiting(tmp_path) -> None:
    main, other = run_ranks(2, failing_on_one, tmp_path)
    assert main != "written"
    assert other == "written"
