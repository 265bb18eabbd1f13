"""The group ``model``: every key has its effect, and a model of any directory can be trained."""

import json

import pytest
import torch
import torch.distributed as dist
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.models.liger_stand_in import stand_in
from wavalign_fast.config.model import ModelConfig
from wavalign_fast.errors import UserError
from wavalign_fast.models import decoder_layers, has_lora
from wavalign_fast.train.model_setup import load_base_model, sampling_dtype
from wavalign_fast.train.trainer import Trainer

from .conftest import VOCAB


def own_model(**changes) -> Qwen2ForCausalLM:
    """A model of another shape and with other weights than the toy recipe's."""
    torch.manual_seed(5)
    settings = dict(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return Qwen2ForCausalLM(Qwen2Config(**settings | changes))


@pytest.fixture
def directory(tmp_path):
    own_model().to(torch.bfloat16).save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def is_checkpointed(trainer) -> bool:
    return all(layer.gradient_checkpointing for layer in decoder_layers(trainer.model))


def is_compiled(trainer) -> bool:
    return all(layer._compiled_call_impl is not None for layer in decoder_layers(trainer.model))


def dtype_of(model) -> str:
    return str(model.dtype).removeprefix("torch.")


KEYS = {
    "path": ("", "own", lambda it: it.model.config._name_or_path.rpartition("/")[2]),
    "dtype": ("float32", "bfloat16", lambda it: dtype_of(it.model)),
    "compute_dtype": ("float32", "bfloat16", lambda it: dtype_of(it.train_step.twin.model)),
    "attention": ("sdpa", "eager", lambda it: it.model.config._attn_implementation),
    "activation_checkpointing": (False, True, is_checkpointed),
    "compile": (False, True, is_compiled),
    "kernels": ("Qwen2RMSNorm", "liger", lambda it: type(it.model.model.norm).__name__),
    "lora": (False, "{rank: 2}", lambda it: has_lora(it.model)),
}
"""For every key what is seen by default, another value, and how to read it from a trainer."""
SEEN = {"lora": True, "kernels": "LigerQwen2RMSNorm"}
"""What is seen of a value that is not itself seen. The keys of ``lora`` are in ``test_lora.py``."""


@pytest.fixture
def make_trainer(make_config, toy_task, tmp_path):
    """Builds trainers; afterwards ends the group that FSDP2 needs for two dtypes."""

    def make(*overrides: str) -> Trainer:
        return Trainer(make_config(*overrides), toy_task(), tmp_path)

    yield make
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("name", ModelConfig.model_fields)
def test_every_key_reaches_the_model(make_trainer, directory, monkeypatch, name):
    monkeypatch.chdir(directory.parent)
    default, value, read = KEYS[name]
    if name == "lora":
        pytest.importorskip("peft")
    if name == "kernels":
        stand_in(monkeypatch)
    assert read(make_trainer()) == default
    assert read(make_trainer(f"model.{name}={value}")) == SEEN.get(name, value)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_reference_is_stored_in_the_dtype_that_it_computes_in(make_trainer, compute):
    trainer = make_trainer("loss.text_kl=0.1", f"model.compute_dtype={compute}")
    kinds = {str(weight.dtype) for weight in trainer.train_step.reference.parameters()}
    assert kinds == {f"torch.{compute}"}
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ((), None),
        (("model.compute_dtype=bfloat16",), torch.bfloat16),
        (("model.compute_dtype=bfloat16", "rollout.dtype=float32"), None),
        (("rollout.dtype=bfloat16",), torch.bfloat16),
        (("model.dtype=bfloat16", "rollout.dtype=bfloat16"), None),
    ],
)
def test_no_dtype_is_named_for_weights_that_sample_as_they_are_stored(make_config, keys, wanted):
    assert sampling_dtype(make_config(*keys)) == wanted


def test_float32_cannot_be_computed_from_bfloat16(make_config):
    with pytest.raises(UserError, match="compute_dtype float32 given for weights stored in bf"):
        make_config("model.dtype=bfloat16", "model.compute_dtype=float32")


def test_an_own_model_is_trained_and_continued(train, directory, monkeypatch):
    """A directory in bfloat16 gives fp32 weights; a resumed run goes on from its checkpoint."""
    keys = [f"model.path={directory}", "model.attention=eager"]
    whole = train(*keys, name="whole")
    assert [tuple(p.shape) for p in whole.model.parameters()] == [
        tuple(p.shape) for p in own_model().parameters()
    ]
    assert whole.model.dtype == torch.float32
    train(*keys, "train.steps=2", name="halves")
    resumed = train(*keys, name="halves")
    assert resumed.model.config._attn_implementation == "eager"
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, resumed.model.get_parameter(name)), name


def test_weights_in_bfloat16_keep_the_rotary_frequencies(toy_task, directory):
    wanted = own_model().model.rotary_emb.inv_freq
    for path in (None, str(directory)):
        model = load_base_model(ModelConfig(path=path, dtype="bfloat16"), toy_task())
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
        found = model.model.rotary_emb.inv_freq
        assert found.dtype == torch.float32
        assert path is None or torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": "nowhere"}, r"model\.path: no checkpoint in nowhere: config\.json is missing"),
        ({"path": "other"}, r"model\.path: checkpoint other cannot be read"),
    ],
)
def test_a_directory_without_a_model_is_named(toy_task, in_tmp_path, keys, message):
    (in_tmp_path / "other").mkdir()
    (in_tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "no-such"}))
    with pytest.raises(UserError, match=message):
        load_base_model(ModelConfig(**keys), toy_task())


def test_attention_by_code_of_its_own_is_named(toy_task, monkeypatch):
    monkeypatch.setattr(Qwen2ForCausalLM, "_can_set_attn_implementation", lambda self: False)
    with pytest.raises(UserError, match=r"model\.attention: .*'eager'.*code of its own"):
        load_base_model(ModelConfig(attention="eager"), toy_task())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("flex_attention", "no backward pass on a CPU"),
        ("flash_attention_2", "FlashAttention2.*installed"),
    ],
)
def test_attention_that_needs_something_missing_is_named(toy_task, name, reason):
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(
        UserError, match=rf"model\.attention: '{name}' cannot be used here: .*{reason}"
    ):
        load_base_model(ModelConfig(attention=name), toy_task())


def test_a_model_of_another_vocabulary_is_refused(train, tmp_path):
    own_model(vocab_size=VOCAB + 8).save_pretrained(tmp_path / "own")
    with pytest.raises(UserError, match=f"model vocabulary: {VOCAB + 8} rows .* wanted {VOCAB}"):
        train(f"model.path={tmp_path / 'own'}")


def test_a_model_without_known_layers_is_refused():
    model = own_model()
    model._no_split_modules = model.model._no_split_modules = None
    with pytest.raises(UserError, match="decoder layers of Qwen2ForCausalLM: found none"):
        decoder_layers(model)
