"""``output_head`` returns the matrix that makes the model's logits."""

import copy

import pytest
import torch
from torch import nn

import wavalign_fast as wf
from wavalign_fast.errors import UserError

V, H, R = 24, 16, 3
TARGETS = torch.tensor([[1, 13, 2, 5], [7, 2, 20, 23]])
REFERENCE = wf.LossOptions(backend="reference")


def causal_lm(*, tied: bool = False, dtype: torch.dtype = torch.float64) -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=V, hidden_size=H, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).to(dtype).eval()


def log_probs_of_logits(model: nn.Module) -> torch.Tensor:
    logits = model(input_ids=TARGETS).logits
    return torch.log_softmax(logits, -1).gather(-1, TARGETS.unsqueeze(-1)).squeeze(-1)


def log_probs_of_head(model: nn.Module) -> torch.Tensor:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = wf.output_head(model)
    hidden = base.model(input_ids=TARGETS).last_hidden_state.to(head.weight.dtype)
    options = REFERENCE if hidden.dtype == torch.float64 else None
    return wf.linear_logprob(hidden, head.weight, TARGETS, bias=head.bias, options=options).logp


def coefficients() -> torch.Tensor:
    return torch.linspace(-1, 2, TARGETS.numel()).reshape(TARGETS.shape)


def gradients(model: nn.Module, logp: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    (coefficients() * logp).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def assert_the_same_as_logits(model: nn.Module, tolerance: float = 1e-12) -> dict:
    """Log-probs and every gradient; returns the gradients."""
    want = log_probs_of_logits(model)
    got = log_probs_of_head(model)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    want_grads = gradients(model, want)
    got_grads = gradients(model, got)
    for name, truth in want_grads.items():
        if truth is not None:
            torch.testing.assert_close(got_grads[name], truth, rtol=tolerance, atol=tolerance)
        assert (got_grads[name] is None) == (truth is None), name
    return got_grads


@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_head_is_its_own_parameters(tied) -> None:
    model = causal_lm(tied=tied)
    head = wf.output_head(model)
    assert head.weight is model.lm_head.weight and head.bias is None
    assert (head.weight is model.get_input_embeddings().weight) == tied
    assert wf.output_head(model.lm_head).weight is head.weight
    assert_the_same_as_logits(model)


def test_a_bias_and_a_parametrization_are_in() -> None:
    linear = nn.Linear(H, V).double()
    assert wf.output_head(linear).bias is linear.bias
    nn.utils.parametrizations.weight_norm(linear)
    hidden = torch.randn(5, H, dtype=torch.float64)
    head = wf.output_head(linear)
    torch.testing.assert_close(hidden @ head.weight.T + head.bias, linear(hidden))
    assert head.weight.requires_grad


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def with_hook(method: str) -> nn.Module:
    linear = nn.Linear(H, V)
    getattr(linear, method)(lambda *args: None)
    return linear


def with_forward() -> nn.Module:
    linear = nn.Linear(H, V)
    linear.forward = lambda x: x  # as accelerate's hooks do
    return linear


@pytest.mark.parametrize(
    "head, message",
    [
        (nn.Embedding(V, H), "got torch.nn.modules.sparse.Embedding, want torch.nn.Linear"),
        (Scaled(H, V), r"got .*\.Scaled, want torch.nn.Linear or a LoRA over one"),
        (with_hook("register_forward_hook"), "got the forward hook <function"),
        (with_hook("register_forward_pre_hook"), "got the forward hook <function"),
        (with_forward(), "got the forward hook <function"),
        (None, "got builtins.NoneType, want torch.nn.Linear"),
    ],
)
def test_a_head_that_cannot_be_honoured_is_named(head, message) -> None:
    class Model(nn.Module):
        def get_output_embeddings(self) -> nn.Module:
            return head

    with pytest.raises(UserError, match=f"output head: {message}"):
        wf.output_head(Model())


def test_an_integer_weight_is_refused() -> None:
    linear = nn.Linear(H, V)
    linear.weight = nn.Parameter(torch.zeros(V, H, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UserError, match=r"torch\.int8, want a floating tensor"):
        wf.output_head(linear)


def adapted(*adapters: str, base: nn.Module | None = None, **settings) -> nn.Module:
    """LoRA on the head (and on a matrix below it), with a B that is not 0."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    settings = {"target_modules": ["lm_head", "q_proj"], "lora_alpha": 5} | settings
    model = base or causal_lm()
    for index, name in enumerate(adapters or ("default",)):
        config = peft.LoraConfig(r=R + index, **settings)
        if index:
            model.add_adapter(name, config)
        else:
            model = peft.get_peft_model(model, config, name, autocast_adapter_dtype=False)
    model.to(model.get_output_embeddings().weight.dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def lora_grads(grads: dict, *names: str) -> None:
    for name in names:
        assert any(name in key and "lm_head" in key and g is not None for key, g in grads.items())


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"target_modules": ["lm_head"]}, {"init_lora_weights": "gaussian"}],
    ids=str,
)
def test_a_lora_is_in_value_and_gradient(settings) -> None:
    model = adapted(**settings)
    grads = assert_the_same_as_logits(model)
    lora_grads(grads, "lora_A", "lora_B")
    assert not any(name.endswith("base_layer.weight") for name in grads)
    plain = wf.output_head(model.get_output_embeddings().base_layer).weight
    assert (wf.output_head(model).weight - plain).abs().max() > 0.1


def test_a_trained_base_gets_its_gradient_too() -> None:
    model = adapted()
    model.get_output_embeddings().base_layer.weight.requires_grad_()
    lora_grads(assert_the_same_as_logits(model), "lora_A", "lora_B", "base_layer.weight")


def test_a_tied_base_under_a_lora() -> None:
    model = adapted(base=causal_lm(tied=True))
    model.get_output_embeddings().base_layer.weight.requires_grad_()
    assert_the_same_as_logits(model)


def test_several_active_adapters_add_up() -> None:
    model = adapted("first", "second")
    model.base_model.set_adapter(["first", "second"])
    lora_grads(assert_the_same_as_logits(model), "lora_A.first", "lora_B.second")
    model.base_model.set_adapter("second")
    both = wf.output_head(model).weight
    assert_the_same_as_logits(model)
    model.base_model.set_adapter("first")
    assert (wf.output_head(model).weight - both).abs().max() > 0.1


def test_a_bias_of_the_adapter_is_in() -> None:
    base = causal_lm()
    base.lm_head = nn.Linear(H, V).double()
    model = adapted(base=base, lora_bias=True, target_modules=["lm_head"])
    assert_the_same_as_logits(model)
    # peft restores a merged bias too.
    model.merge_adapter()
    with model.disable_adapter():
        head = wf.output_head(model)
        torch.testing.assert_close(log_probs_of_head(model), log_probs_of_logits(model))
    torch.testing.assert_close(head.bias, base.lm_head.base_layer.bias)


def test_disabled_adapters_are_out() -> None:
    model = adapted()
    with model.disable_adapter():
        assert wf.output_head(model).weight is model.get_output_embeddings().base_layer.weight
        torch.testing.assert_close(log_probs_of_head(model), log_probs_of_logits(model))


def test_merged_adapters_are_in_once_and_disabled_ones_are_taken_out() -> None:
    model = adapted()
    before = wf.output_head(model).weight.detach().clone()
    plain = model.get_output_embeddings().base_layer.weight.detach().clone()
    model.merge_adapter()
    torch.testing.assert_close(wf.output_head(model).weight, before)
    with torch.no_grad():
        torch.testing.assert_close(log_probs_of_head(model), log_probs_of_logits(model))
    with model.disable_adapter():
        torch.testing.assert_close(wf.output_head(model).weight, plain)
        assert model.get_output_embeddings().merged  # looking has changed nothing
        torch.testing.assert_close(wf.output_head(model).weight, plain)
        torch.testing.assert_close(log_probs_of_head(model), log_probs_of_logits(model))


def test_a_copy_in_modules_to_save_is_the_head() -> None:
    model = adapted(target_modules=["q_proj"], modules_to_save=["lm_head"])
    wrapper = model.get_output_embeddings()
    nn.init.normal_(wrapper.modules_to_save["default"].weight)
    assert wf.output_head(model).weight is wrapper.modules_to_save["default"].weight
    assert_the_same_as_logits(model)
    with model.disable_adapter():
        assert wf.output_head(model).weight is wrapper.original_module.weight
        torch.testing.assert_close(log_probs_of_head(model), log_probs_of_logits(model))


def test_an_adapter_without_a_copy_of_its_own_takes_the_original() -> None:
    model = adapted(target_modules=["q_proj"], modules_to_save=["lm_head"])
    wrapper = model.get_output_embeddings()
    nn.init.normal_(wrapper.modules_to_save["default"].weight)
    import peft

    model.add_adapter("bare", peft.LoraConfig(r=R, target_modules=["q_proj"]))
    model.double().set_adapter("bare")
    assert wf.output_head(model).weight is wrapper.original_module.weight
    torch.testing.assert_close(log_probs_of_head(model), log_probs_of_logits(model))


def test_float32_adapters_on_a_bfloat16_base_are_not_rounded_away() -> None:
    """A step of 1e-5 in B is far below bfloat16's resolution of the base."""
    model = adapted(base=causal_lm(dtype=torch.bfloat16), target_modules=["lm_head"])
    head = model.get_output_embeddings()
    head.lora_A.float(), head.lora_B.float()
    assert wf.output_head(model).weight.dtype == torch.float32
    before = wf.output_head(model).weight.detach().clone()
    with torch.no_grad():
        head.lora_B["default"].weight += 1e-5
    step = wf.output_head(model).weight.detach() - before
    want = head.scaling["default"] * 1e-5 * head.lora_A["default"].weight.sum(0).expand(V, H)
    torch.testing.assert_close(step, want, rtol=0.2, atol=1e-6)


def test_float32_kernels_agree_with_the_model() -> None:
    assert_the_same_as_logits(adapted(base=causal_lm(dtype=torch.float32)), tolerance=1e-5)


def test_dropout_is_refused_in_training_only() -> None:
    model = adapted(lora_dropout=0.1)
    assert_the_same_as_logits(model)
    model.train()
    with pytest.raises(UserError, match=r"adapter 'default' has Dropout\(p=0.1.*want lora_dropout"):
        wf.output_head(model)


def test_dora_is_refused_until_it_is_merged() -> None:
    model = adapted(use_dora=True)
    with pytest.raises(UserError, match="adapter 'default' is a DoraLinearVariant, want a plain"):
        wf.output_head(model)
    model.merge_adapter()
    with torch.no_grad():
        torch.testing.assert_close(log_probs_of_head(model), log_probs_of_logits(model))
    with (
        model.disable_adapter(),
        pytest.raises(UserError, match="'default' is a DoraLinearVariant"),
    ):
        wf.output_head(model)


class Stand(nn.Module):
    """Stands in for a LoRA layer of peft."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.base_layer = nn.Linear(H, V, bias=False).double()
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.lora_dropout, self.use_dora = nn.ModuleDict(), {}
        self.scaling = {"one": 2.5, "two": -0.3}
        self.active_adapters, self.merged_adapters = ["one", "two"], []
        self.disable_adapters = False
        for name in self.scaling:
            self.lora_A[name] = nn.Linear(H, R, bias=False).double()
            self.lora_B[name] = nn.Linear(R, V, bias=True).double()
            self.lora_dropout[name] = nn.Identity()
            for p in (*self.lora_A[name].parameters(), *self.lora_B[name].parameters()):
                p.data = torch.randn(p.shape, generator=g, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base_layer(x)
        for name in self.active_adapters:
            out = out + self.scaling[name] * self.lora_B[name](self.lora_A[name](x))
        return out


Stand.__module__, Stand.__qualname__ = "peft.tuners.lora.layer", "Linear"


@pytest.mark.parametrize("active", [["one"], ["two"], ["one", "two"], []])
def test_the_scale_of_each_adapter_counts_without_peft_at_hand(active) -> None:
    lora = Stand()
    lora.active_adapters = active
    hidden = torch.randn(5, H, dtype=torch.float64)
    head = wf.output_head(lora)
    ours = hidden @ head.weight.T + (0.0 if head.bias is None else head.bias)
    theirs = lora(hidden)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    trained = [p for name, p in lora.named_parameters() if any(f".{a}." in name for a in active)]
    if trained:
        got, want = (torch.autograd.grad(z.square().sum(), trained) for z in (ours, theirs))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["LoHaConfig", "IA3Config", "VeraConfig", "OFTConfig"])
def test_other_kinds_of_adapters_are_named(kind) -> None:
    peft = pytest.importorskip("peft")
    settings = {"target_modules": ["lm_head"]}
    if kind == "IA3Config":
        settings["feedforward_modules"] = []
    if kind == "OFTConfig":
        settings |= {"r": 2, "oft_block_size": 0}
    model = peft.get_peft_model(causal_lm(dtype=torch.float32), getattr(peft, kind)(**settings))
    with pytest.raises(UserError, match=r"output head: got peft\.tuners\.\w+\.layer\.\w+, want"):
        wf.output_head(model)


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "base_layer", None])
def test_hooks_inside_a_lora_are_refused(part) -> None:
    head = adapted().get_output_embeddings()
    inner = head if part is None else getattr(head, part)
    inner = inner["default"] if part in ("lora_A", "lora_B") else inner
    inner.register_forward_hook(lambda *args: None)
    with pytest.raises(UserError, match="got the forward hook"):
        wf.output_head(head)


def test_the_objective_trains_through_a_lora() -> None:
    """The hybrid loss from ``output_head`` against the same loss from the model's logits."""
    model = adapted(target_modules=["lm_head"])
    layout = wf.ModalityLayout(vocab_size=V, speech=((12, 22),))
    row = torch.arange(2).repeat_interleave(4)
    batch = wf.HybridBatch(
        TARGETS.flatten(), row, torch.full_like(row, -1), torch.tensor([[1.0, 2.0]])
    )
    objective = wf.HybridObjective(layout, policy_scope="all", gate=1.0, options=REFERENCE)
    hidden = model.get_base_model().model(input_ids=TARGETS).last_hidden_state
    out = objective(hidden, *wf.output_head(model)[:1], batch)
    out.loss.backward()
    got = {n: copy.copy(p.grad) for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    advantages = wf.group_advantages(batch.rewards).double().T
    (-(advantages * log_probs_of_logits(model)).mean(1).mean()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(got[name], parameter.grad, rtol=1e-10, atol=1e-12)
