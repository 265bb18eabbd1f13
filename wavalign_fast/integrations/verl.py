"""verl's log-probs and entropies from the fused ops, and WavAlign's surrogate as a policy loss.

    actor_rollout_ref.model.use_fused_kernels=True
    actor_rollout_ref.model.fused_kernel_options.impl_backend=torch
    actor_rollout_ref.model.external_lib=wavalign_fast.integrations.verl
    actor_rollout_ref.actor.policy_loss.loss_mode=wavalign         # where wanted

verl imports this module in every worker. Losses, KL, entropy bonus and their means stay verl's; two
things are replaced: the product that the fused forward of its models calls, and the FSDP engine,
which tells that product which positions predict a response. Prompts do not meet the head.
"""

from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import register_policy_loss
from verl.utils import tensordict_utils
from verl.utils.device import get_vendor
from verl.utils.experimental import torch_functional
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from wavalign_fast.errors import UserError
from wavalign_fast.integrations.fused_head import whole
from wavalign_fast.integrations.verl_policy_loss import policy_loss
from wavalign_fast.models import logit_transform
from wavalign_fast.ops import IGNORE_INDEX, linear_logprob


class FusedLinearForPPO(torch.nn.Module):
    """In the place of verl's module of this name."""

    def __init__(self, chunk_size: int = 512, impl_backend: str = "torch") -> None:
        super().__init__()
        if impl_backend != "torch":
            raise UserError(
                f"fused_kernel_options.impl_backend: got {impl_backend!r}, want 'torch'"
            )

    def forward(
        self,
        hidden_states: Tensor,
        vocab_weights: Tensor,
        input_ids: Tensor,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [...] of ids [...]; 0 where an id is -100."""
        # verl makes an untied head an FSDP2 unit of its own, which only its own forward gathers.
        weight = whole(vocab_weights)
        dtype = torch.promote_types(hidden_states.dtype, weight.dtype)
        scores = linear_logprob(
            hidden_states.to(dtype),
            weight.to(dtype),
            input_ids,
            temperature=float(temperature),
            with_entropy=True,
        )
        assert scores.entropy is not None
        return scores.logp, scores.entropy


# verl looks for an engine of the machine's vendor before it takes its own, which names none.
@EngineRegistry.register(
    model_type="language_model",
    backend=["fsdp", "fsdp2"],
    device=["cuda", "npu"],
    vendor=get_vendor(),
)
class FusedFSDPEngine(FSDPEngineWithLMHead):
    """verl's FSDP engine. It scores responses only, and refuses a head that verl would misread."""

    def _build_module(self) -> Any:
        return self._checked(super()._build_module())

    def _build_lora_module(self, module: Any) -> Any:
        return self._checked(super()._build_lora_module(module))

    def _checked(self, module: Any) -> Any:
        if self.model_config.use_fused_kernels:
            check_head(module)
        return module

    def prepare_model_inputs(self, micro_batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        inputs, rest = super().prepare_model_inputs(micro_batch)
        fused = tensordict_utils.get_non_tensor_data(micro_batch, "use_fused_kernels", False)
        # Slices and pads of a packed batch are verl's own: there every position is scored, as
        # without us, and where nothing is a response.
        if not fused or self.use_ulysses_sp or self.pad_to_length or "responses" not in micro_batch:
            return inputs, rest
        labels, offsets = response_labels(micro_batch), micro_batch["input_ids"].offsets()
        if inputs["attention_mask"] is None:
            inputs["shift_labels"] = labels.unsqueeze(0)
        else:
            inputs["shift_labels"] = torch.nested.to_padded_tensor(
                torch.nested.nested_tensor_from_jagged(labels, offsets),
                padding=IGNORE_INDEX,
                output_size=tuple(inputs["input_ids"].shape),
            )
        return inputs, rest


def response_labels(micro_batch: Any) -> Tensor:
    """[tokens] the id that each packed position predicts, or -100 if that is none of a response."""
    values, offsets = micro_batch["input_ids"].values(), micro_batch["input_ids"].offsets()
    responses = micro_batch["responses"]
    if responses.is_nested:
        lengths = responses.offsets().diff()
    else:
        lengths = micro_batch["attention_mask"][:, -responses.shape[1] :].sum(1)
    position = torch.arange(len(values), device=values.device)
    row = torch.searchsorted(offsets[1:], position, right=True)
    end = offsets[1:][row]
    first = end - lengths.to(end.device)[row] - 1
    predicts = (position >= first) & (position < end - 1)
    return torch.where(predicts, values.roll(-1), IGNORE_INDEX)


def check_head(module: Any) -> None:
    """Refuses a head of which verl's fused forward would use ``lm_head.weight`` alone.

    Raises:
        UserError: a bias, an adapter, a scale or a soft cap; the message names it.
    """
    head = module.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None:
        raise UserError(f"use_fused_kernels: got the head {head}, want nn.Linear without bias")
    transform = logit_transform(module)
    if transform.scale != 1.0:
        raise UserError(f"use_fused_kernels: got logits with a factor of {transform.scale}, want 1")
    if transform.softcap is not None:
        raise UserError(f"use_fused_kernels: got a soft cap of {transform.softcap}, want none")


register_policy_loss("wavalign")(policy_loss)
torch_functional.FusedLinearForPPO = FusedLinearForPPO
