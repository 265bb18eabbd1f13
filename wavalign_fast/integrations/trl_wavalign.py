"""WavAlign on TRL's GRPOTrainer: scopes by layout, demonstrations and the mixing gate."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from wavalign_fast.errors import UserError, shown
from wavalign_fast.integrations.attach import bare_model
from wavalign_fast.integrations.trl import FusedGRPOTrainer
from wavalign_fast.losses import SPEECH, HybridObjective, MixingGate, ModalityLayout
from wavalign_fast.losses.weights import Scope, ScopeWeights
from wavalign_fast.ops import IGNORE_INDEX

GATE_FILE = "mixing_gate.json"


class WavAlignGRPOTrainer(FusedGRPOTrainer):
    """``λ · TRL's loss over the tokens in scope + (1 - λ) · cross entropy of demonstrations``.

    With ``loss_type="grpo"`` and ``beta=0.0`` this is ``HybridObjective`` with
    ``advantage_std="sample"``; TRL's other options work as well. The dataset has a column
    ``demonstration``: the answer shown for its prompt, a text, which gets the tokenizer's end of
    sequence, or ids as they are. Each demonstration with a token in scope counts alike. The gate
    moves once a batch of rollouts, by the rewards of all ranks; checkpoints keep its λ.

    Args:
        layout: which ids are text and which speech.
        policy_scope, anchor_scope: the tokens of each term: "all", "text" or "speech".
        gate: a ``MixingGate`` (by default a new one) or a constant λ in [0, 1].

    Raises:
        ValueError: an option outside its range, a layout of another vocabulary, a dataset without
            demonstrations, rollouts of a rank that are not whole groups or whole optimizer steps.
    """

    def __init__(
        self,
        *args: Any,
        layout: ModalityLayout,
        policy_scope: Scope = "text",
        anchor_scope: Scope = "all",
        gate: MixingGate | float | None = None,
        **kwargs: Any,
    ) -> None:
        objective = HybridObjective(layout, policy_scope, anchor_scope, gate=gate)
        super().__init__(*args, **kwargs)
        self._check_rollouts()
        ids = bare_model(self.model).get_output_embeddings().weight.shape[0]
        if ids != layout.vocab_size:
            raise UserError(f"layout: got {layout.vocab_size} ids, want {ids}, those of the head")
        self.layout, self.gate = layout, objective.gate
        self._policy, self._anchor = objective.policy_weights, objective.anchor_weights
        self._rl_weight: Any = self.gate

    def _check_rollouts(self) -> None:
        columns = getattr(self.train_dataset, "column_names", None)  # None: not known beforehand
        if columns is not None and "demonstration" not in columns:
            raise UserError(f"train_dataset: got columns {columns}, want demonstration among them")
        parts, accumulated = self.args.steps_per_generation, self.args.gradient_accumulation_steps
        if parts % accumulated:  # the anchor's mean is over the demonstrations of one generation
            raise UserError(
                f"steps_per_generation: got {parts}, want a multiple of "
                f"gradient_accumulation_steps = {accumulated}"
            )
        rows = self.args.per_device_train_batch_size * parts
        if rows % self.num_generations:  # a prompt and its demonstration belong to one rank
            raise UserError(
                f"rollouts of a rank: got {rows}, want a multiple of num_generations = "
                f"{self.num_generations}"
            )

    def _in_scope(self, weights: ScopeWeights, ids: Tensor) -> Tensor:
        speech = self.layout.classify(ids) == SPEECH
        return weights.per_token(speech, torch.ones_like(speech)) > 0

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "demonstration" not in self._signature_columns:
            self._signature_columns.append("demonstration")

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        prompt_ids, completion_ids, mask, *rest = super()._generate(prompts)
        scope = [self._in_scope(self._policy, torch.tensor(ids)).int() for ids in completion_ids]
        if mask is not None:
            scope = [one * torch.tensor(other) for one, other in zip(scope, mask, strict=True)]
        return prompt_ids, completion_ids, [one.tolist() for one in scope], *rest

    def _calculate_rewards(self, inputs: list[Any], *args: Any, **kwargs: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, *args, **kwargs)  # of all ranks
        if self.model.training:
            total = (rewards * self.reward_weights.to(rewards)).nansum(1)
            total[rewards.isnan().all(1)] = torch.nan
            if isinstance(self.gate, MixingGate):
                self._rl_weight = self.gate(total.view(-1, self.num_generations), reduce=False)
            self._metrics["train"]["lambda"].append(float(self._rl_weight))
            self._show(inputs[:: self.num_generations])
        return rewards

    def _show(self, rows: list[dict[str, Any]]) -> None:
        """Makes the demonstrations of this rank's prompts, right-padded.

        ``_shown`` has ids, labels and attention mask of each micro-batch; ``_counts`` how many of
        them have a label in scope, the mean over the ranks.
        """
        prompts = self._tokenize_prompts([row["prompt"] for row in rows])[0]
        both = zip(prompts, map(self._answer_ids, rows), strict=True)
        ids = [torch.tensor([*prompt, *answer]) for prompt, answer in both]
        labels = [x.masked_fill(~self._in_scope(self._anchor, x), IGNORE_INDEX) for x in ids]
        for row, prompt in zip(labels, prompts, strict=True):
            row[: len(prompt)] = IGNORE_INDEX
        seen = [torch.ones_like(x) for x in ids]
        columns = ((ids, self._tokenizer.pad_token_id), (labels, IGNORE_INDEX), (seen, 0))
        padded = (pad_sequence(x, batch_first=True, padding_value=value) for x, value in columns)
        parts, device = self.args.steps_per_generation, self.accelerator.device
        self._shown = list(zip(*(x.to(device).tensor_split(parts) for x in padded), strict=True))
        counts = [(shown != IGNORE_INDEX).any(1).sum() for _, shown, _ in self._shown]
        self._counts = self.accelerator.reduce(torch.stack(counts).double(), "mean")

    def _answer_ids(self, row: dict[str, Any]) -> list[int]:
        answer = row.get("demonstration")
        if isinstance(answer, str):
            ids = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
            return [*ids, self._tokenizer.eos_token_id]
        if not isinstance(answer, list) or not all(type(token) is int for token in answer):
            raise UserError(f"demonstration: got {shown(answer)}, want a text or a list of ids")
        return answer

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        if not self.model.training:
            return loss
        steps = self.current_gradient_accumulation_steps
        part = self._step % self.args.steps_per_generation
        ids, labels, mask = self._shown[part]
        if len(ids) == 0:  # fewer demonstrations than micro-batches, on every rank
            return self._rl_weight * loss
        out = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        means = -out.log_probs.sum(1) / out.label_mask.sum(1).clamp(min=1)
        # Every demonstration of the step weighs the same, in whichever micro-batch it is.
        first = part // steps * steps
        count = self._counts[first : first + steps].sum()
        anchor = means.sum() / torch.where(count > 0, count, 1)
        self._metrics["train"]["loss/anchor"].append(float(anchor.detach()) * steps)
        return self._rl_weight * loss + (1 - self._rl_weight) * anchor

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save and isinstance(self.gate, MixingGate):
            folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            state = {name: value.item() for name, value in self.gate.state_dict().items()}
            (folder / GATE_FILE).write_text(json.dumps(state))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        file = Path(checkpoint, GATE_FILE) if checkpoint is not None else None
        if isinstance(self.gate, MixingGate) and file is not None and file.exists():
            state = json.loads(file.read_text())
            self.gate.load_state_dict({name: torch.tensor(x) for name, x in state.items()})
