"""A LightningModule that trains a transformers causal LM without its logits."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from wavalign_fast.ops import LossOptions


class FusedCausalLM:
    """Goes before ``LightningModule`` in a class's bases, and gives it ``training_step``.

    The batch holds the arguments of ``self.model``, a causal LM of transformers or peft's wrapper
    of one. With ``num_items_in_batch`` in it, the labels other than -100 of the whole optimizer
    step on all ranks, every label weighs alike. Without, each micro-batch is a mean of its own, as
    Lightning does it.
    """

    model: Any
    trainer: Any
    log: Callable[..., None]
    loss_options: LossOptions | None = None
    """Of ``linear_logprob``."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Returns the loss, which it logs as ``train_loss``."""
        loss = self.fused_loss(batch)
        self.log("train_loss", loss.detach())
        return loss

    def fused_loss(self, batch: dict[str, Any]) -> Tensor:
        """The loss of a batch, ready to be returned from ``training_step``.

        Lightning divides it by the accumulated batches and DDP averages over the ranks, so with
        ``num_items_in_batch`` it is multiplied by both.

        Raises:
            UserError: a head or a loss that is not honoured.
        """
        from wavalign_fast.integrations.causal_lm import fused_loss

        with fused_loss(self.model, options=self.loss_options):
            loss: Tensor = self.model(**batch).loss
        if batch.get("num_items_in_batch") is None:
            return loss
        divided: int = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return loss * divided
