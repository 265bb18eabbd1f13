"""A model directory is read into shards, and no rank holds the whole model."""

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig

from tests.models.tiny import tiny_model
from tests.ranks import run_ranks
from wavalign_fast.config.model import ModelConfig
from wavalign_fast.config.parallel import ParallelConfig
from wavalign_fast.errors import UserError
from wavalign_fast.models import empty_model, frozen_copy, load_checkpoint
from wavalign_fast.train.model_setup import fill_base_model, load_base_model, prepare_model
from wavalign_fast.train.policy import Policy, wrapped
from wavalign_fast.train.ranks import Ranks

HYBRID = ParallelConfig(replicate=2, shard=2)
LORA = {"rank": 3, "alpha": 6, "head": True}


def saved(model, directory, lora=None, **settings):
    model.save_pretrained(directory, **settings)
    return ModelConfig(path=str(directory), lora=lora or {})


def read_in_shards(config, parallel):
    """Whole weights and buffers of a model read in shards, and of a copy; what was held before."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    base = load_base_model(config, None, in_shards=True)
    assert all(weight.is_meta for weight in base.parameters())
    # With adapters the reference of a KL is the policy without them, and no copy.
    copies = [] if config.lora.rank else [frozen_copy(base)]
    found = []
    for model in (*copies, prepare_model(base, config, seed=1)):
        wrapped(Policy(model), parallel, ranks)
        assert all(isinstance(weight, DTensor) for weight in model.parameters())
        fill_base_model(model, config)
        tensors = {n: w.full_tensor().detach() for n, w in model.named_parameters()}
        found.append(tensors | dict(model.named_buffers()))
    return found


@pytest.mark.parametrize(
    ("world", "parallel", "tied", "lora"),
    [
        (3, ParallelConfig(), False, None),  # 29 ids: unequal shards
        (2, ParallelConfig(), True, None),
        (4, HYBRID, False, None),
        (2, ParallelConfig(head="sharded"), False, None),
        (2, ParallelConfig(), False, LORA),
        (3, ParallelConfig(), True, LORA),
    ],
    ids=["three", "tied", "hybrid", "head", "lora", "tied-lora"],
)
def test_the_shards_together_are_the_model(tmp_path, world, parallel, tied, lora):
    if lora:
        pytest.importorskip("peft")
    model = tiny_model(torch.bfloat16, tie_word_embeddings=tied)
    # Several files, of which no rank reads all.
    config = saved(model, tmp_path / "own", lora, max_shard_size="20KB")
    assert len(list((tmp_path / "own").glob("*.safetensors"))) > 1
    whole = prepare_model(load_checkpoint(tmp_path / "own", dtype=torch.float32), config, seed=1)
    wanted = dict(whole.named_parameters()) | dict(whole.named_buffers())
    for copies in run_ranks(world, read_in_shards, config, parallel):
        for found in copies:
            assert found.keys() == wanted.keys()
            for name, tensor in found.items():
                assert tensor.dtype == torch.float32
                assert torch.equal(tensor, wanted[name]), name


def test_what_is_no_weight_is_read_too(tmp_path):
    model = tiny_model(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=7)
    saved(model, tmp_path / "own")
    empty = empty_model(tmp_path / "own", dtype=torch.float32)
    assert empty.generation_config.eos_token_id == 7
    assert not empty.training
    assert empty.model.rotary_emb.inv_freq.dtype == torch.float32
    # Nothing of the torch that others use has changed.
    assert not torch.nn.Linear(2, 2).weight.is_meta


@pytest.mark.parametrize("world", [1, 2])
def test_files_that_transformers_converts_are_read_whole(tmp_path, world):
    """Old files of a body alone have no ``model.`` before the names."""
    config = saved(tiny_model(torch.bfloat16), tmp_path / "own")
    file = tmp_path / "own" / "model.safetensors"
    weights = {name.removeprefix("model."): value for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    assert empty_model(tmp_path / "own", dtype=torch.float32) is None
    model = load_base_model(config, None, in_shards=world > 1)
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"].float())
    assert torch.equal(model.model.norm.weight, weights["norm.weight"].float())


def test_a_damaged_file_is_named(tmp_path):
    config = saved(tiny_model(torch.bfloat16), tmp_path / "own")
    file = tmp_path / "own" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.path: .*own/model\.safetensors cannot be read"):
        load_base_model(config, None, in_shards=True)
