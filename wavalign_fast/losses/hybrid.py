"""The WavAlign objective: group-relative policy term, anchor and adaptive mixture in one pass."""

from dataclasses import fields
from typing import get_args

import torch
from torch import nn

from wavalign_fast.losses.advantage import Std
from wavalign_fast.losses.batch import HybridBatch
from wavalign_fast.losses.checks import check_head
from wavalign_fast.losses.gate import MixingGate
from wavalign_fast.losses.layout import ModalityLayout
from wavalign_fast.losses.metric_names import with_released_names
from wavalign_fast.losses.metrics import reward_metrics
from wavalign_fast.losses.normalisers import Normalisation, Normalisers
from wavalign_fast.losses.output import HybridOutput
from wavalign_fast.losses.policy import Clip, ImportanceLevel, clip_bounds, policy_tokens
from wavalign_fast.losses.rewards import rewards_table
from wavalign_fast.losses.segments import weighted_sum
from wavalign_fast.losses.tables import StepTables
from wavalign_fast.losses.totals import MetricTotals
from wavalign_fast.losses.weights import KLScope, Scope, ScopeWeights, TokenWeights
from wavalign_fast.ops import IGNORE_INDEX, LogitTransform, LogProb, LossOptions
from wavalign_fast.ops.hybrid_step import gpu_live_rows, hybrid_step
from wavalign_fast.ops.inputs import can_be_read, check_tensor, check_type, finite_number
from wavalign_fast.ops.linear_logprob import compute_logprobs
from wavalign_fast.ops.logit_transform import LogitForm
from wavalign_fast.ops.notices import warn_once
from wavalign_fast.ops.operands import checked_operands
from wavalign_fast.ops.options import checked_options
from wavalign_fast.ops.sharded.head import HeadShard
from wavalign_fast.ops.transfer import copied_together, refuse_in_capture, refuse_meta


class HybridObjective(nn.Module):
    """``L = λ L_policy + (1 - λ) L_anchor (+ L_kl)`` (WavAlign, arXiv 2604.14932).

    L_policy is the mean over all rollouts of the weighted token mean of ``-s + β k``: ``s = ρA`` is
    the surrogate, clipped if asked for, times ``batch.importance`` if given, and k the k3 estimate
    of the KL to the reference. L_anchor
    is the mean over the demonstrations that have a label in scope of the weighted token mean of
    ``-log p``.

    Only positions that carry loss are multiplied with the head, and only those that may have a
    gradient take part in the GEMMs of the backward pass. With hidden states on a GPU this needs the
    tables on the CPU, where the host can read them; with tables on the GPU every position that
    carries loss takes part.

    The ``state_dict`` holds the gate's λ.

    Args:
        layout: the class, text or speech, of every id.
        policy_scope, anchor_scope: the tokens of the term: "all", "text" or "speech".
        text_weight, speech_weight: weights of the policy term's tokens by class. Only their ratio
            matters, and only where the scope is "all".
        anchor_text_weight, anchor_speech_weight: the same for the anchor.
        text_kl, speech_kl: β of the KL to the reference by class; above 0 it needs
            ``batch.ref_logp``.
        kl_scope: "policy": the KL is a part of the policy term, over that term's tokens (the
            released code). "completion": it is a term of its own outside λ, the mean over all
            completion tokens.
        clip: ε or (low, high) for PPO clipping against ``batch.old_logp``; ``None`` does not clip.
        importance_sampling_level: "token": each token has its own ratio ρ to ``batch.old_logp``.
            "sequence": all tokens of a rollout have the same ratio, the exponential of their
            weighted mean log-ratio, and ``clip`` clips that (GSPO, arXiv 2507.18071). On-policy
            both have the same value and gradient.
        normalisation: "sequence": the means above. "token": all tokens of the batch count alike,
            each term is Σ weight·term / Σ weight over all its rows (DAPO, arXiv 2503.14476).
        advantage_std: "population" or "sample" standard deviation of a group's rewards.
        gate: a ``MixingGate`` (by default a new one) or a constant λ in [0, 1].
        options: the backend and its limits; see ``LossOptions``.

    Raises:
        ValueError: an option outside its range; the message has the value seen and the value
            wanted.
    """

    def __init__(
        self,
        layout: ModalityLayout,
        policy_scope: Scope = "text",
        anchor_scope: Scope = "all",
        text_weight: float = 1.0,
        speech_weight: float = 1.0,
        anchor_text_weight: float = 1.0,
        anchor_speech_weight: float = 1.0,
        text_kl: float = 0.0,
        speech_kl: float = 0.0,
        kl_scope: KLScope = "policy",
        clip: Clip | None = None,
        importance_sampling_level: ImportanceLevel = "token",
        normalisation: Normalisation = "sequence",
        advantage_std: Std = "population",
        gate: MixingGate | float | None = None,
        options: LossOptions | None = None,
    ) -> None:
        super().__init__()
        check_type("layout", layout, ModalityLayout)
        checked_options(options)
        for name, value, choices in (
            ("kl_scope", kl_scope, KLScope),
            ("importance_sampling_level", importance_sampling_level, ImportanceLevel),
            ("normalisation", normalisation, Normalisation),
            ("advantage_std", advantage_std, Std),
        ):
            if value not in get_args(choices):
                first, second = get_args(choices)
                raise ValueError(f"{name}: got {value!r}, want {first!r} or {second!r}")
        clip_bounds(clip)
        self.layout = layout
        self.policy_weights = ScopeWeights.of("policy", policy_scope, text_weight, speech_weight)
        self.anchor_weights = ScopeWeights.of(
            "anchor", anchor_scope, anchor_text_weight, anchor_speech_weight
        )
        self.kl_weights = ScopeWeights.of("kl", "all", text_kl, speech_kl)
        self.kl_scope = kl_scope
        self.clip = clip
        self.importance_sampling_level = importance_sampling_level
        self.normalisation: Normalisation = normalisation
        self.advantage_std: Std = advantage_std
        self.gate = MixingGate() if gate is None else _checked_gate(gate)
        self.options = options

    def forward(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor | HeadShard,
        batch: HybridBatch,
        bias: torch.Tensor | None = None,
        rl_weight: torch.Tensor | float | None = None,
        normalisers: Normalisers | None = None,
        transform: LogitTransform | None = None,
    ) -> HybridOutput:
        """Computes the loss of one step; ``loss.backward()`` gives the gradients.

        The gradient goes to ``hidden``, ``weight`` and ``bias``; everything else is constant.

        Args:
            hidden: [T, H] or [R, L, H] with R·L = T, the last hidden states; dtypes as in
                ``linear_logprob``.
            weight: [V, H], the head, in the dtype of ``hidden``; or this rank's slice of it, a
                ``HeadShard``. ``bias`` is then a slice too, and the loss that of this rank's
                positions: each rank of the slices' group calls with its own.
            batch: the tables. With ``hidden`` on a GPU they may be on the CPU, rewards included:
                the rows to multiply are then known without a host sync. While a CUDA graph is
                captured they must be on the GPU.
            bias: [V] floats, the head's bias.
            rl_weight: a λ in [0, 1] that was computed before, a number or 0-d: for a second head,
                gradient accumulation or rewards that arrive late. The gate then does not move. A
                batch with advantages needs it, unless the gate is a constant.
            normalisers: what to divide the terms by, if the batch is a part of a step: the losses
                of the parts, and their ``totals``, then add up to the step's. A rollout must be in
                one part as a whole; a group may be split if every part has its rewards.
            transform: what the model does to its logits, as ``output_head`` finds it.

        Raises:
            ValueError: an argument that does not fit; a table on the CPU while a graph is captured;
                with tables on the CPU also an infinite reward, or a value in ``batch.old_logp``,
                ``batch.ref_logp`` or ``batch.importance`` that is not finite at a token of its
                term. On a GPU, where a
                check would wait for the device, the loss is then not finite.
        """
        self._check_inputs(hidden, weight, batch, rl_weight, normalisers)
        self._warn_of_idle_options(batch)
        token_weights = self.token_weights(batch)
        operands = checked_operands(
            hidden.flatten(0, -2),
            weight,
            torch.where(token_weights.live, batch.targets, IGNORE_INDEX),
            bias,
            ignore_index=IGNORE_INDEX,
            options=self.options,
            form=LogitForm.of(1.0, transform),
        )
        rl_weight, gate_metrics = self._rl_weight(batch, rl_weight)
        tables = self._tables(batch, token_weights, rl_weight, normalisers)
        coefficients = tables.coefficients()
        # Not fused are the reference, whose loss differentiates itself; ratios of whole rollouts,
        # known only with the log-probs of all their tokens, too late for a gradient in the same
        # pass; and any term that the row kernels do not have.
        fused = operands.backend != "reference" and self.importance_sampling_level == "token"
        rows = gpu_live_rows(operands, coefficients, columns=fused)
        # Tables on the CPU have given the live rows without a host sync. The rest is computed where
        # the hidden states are.
        tables, rows = copied_together(operands.rows.device, tables, rows)
        if fused:
            step = hybrid_step(operands, coefficients, rows, clip=clip_bounds(self.clip))
            with torch.no_grad():
                output = self._output(tables, step.scores)
            output = output._replace(loss=step.attach(output.loss))
        else:
            output = self._output(tables, compute_logprobs(operands, live=rows))
        return output._replace(metrics=output.metrics | gate_metrics)

    def combine(
        self,
        batch: HybridBatch,
        token_weights: TokenWeights,
        scores: LogProb,
        rl_weight: torch.Tensor,
        normalisers: Normalisers | None = None,
    ) -> HybridOutput:
        """The step's loss from log-probs that were computed before, each [T].

        Args:
            token_weights: ``self.token_weights(batch)``.
            rl_weight: λ, 0-d.
        """
        return self._output(self._tables(batch, token_weights, rl_weight, normalisers), scores)

    def token_weights(self, batch: HybridBatch) -> TokenWeights:
        """The class, the mask and the weight in each term of every position of ``batch``."""
        return TokenWeights.of(
            batch,
            self.layout,
            policy=self.policy_weights,
            anchor=self.anchor_weights,
            kl=self.kl_weights,
            kl_scope=self.kl_scope,
        )

    def normalisers(self, batch: HybridBatch) -> Normalisers:
        """What the terms of ``batch`` are divided by if it is a whole step: 0-d float64 tensors.

        The number of rollouts, of demonstrations with a label in scope, and of rollouts again for
        the KL; under ``normalisation="token"`` the summed weights of each term's tokens, for the KL
        the number of completion tokens.
        """
        return Normalisers.of(batch, self.token_weights(batch), self.normalisation)

    def reward_metrics(self, rewards: torch.Tensor) -> dict[str, torch.Tensor]:
        """The metrics of a whole step's rewards [B, G], 0-d, as in ``HybridOutput.metrics``.

        Means over the groups with a reward of its mean and its standard deviation, the share of
        such groups whose rewards are all equal, and the number of missing rewards.
        """
        return reward_metrics(rewards_table(rewards), self.advantage_std)

    def _tables(
        self,
        batch: HybridBatch,
        token_weights: TokenWeights,
        rl_weight: torch.Tensor,
        normalisers: Normalisers | None,
    ) -> StepTables:
        return StepTables.of(
            batch,
            token_weights,
            rl_weight,
            normalisers,
            kl_scope=self.kl_scope,
            normalisation=self.normalisation,
            advantage_std=self.advantage_std,
            importance_sampling_level=self.importance_sampling_level,
            clips=self.clip is not None,
            options=self.options,
        )

    def _output(self, tables: StepTables, scores: LogProb) -> HybridOutput:
        """The formula of the class, from the log-probs of every position."""
        # The tables are short and their sums cancel: a policy loss is the small rest of large
        # advantages. In float64 that rest keeps its digits.
        logp = scores.logp.to(torch.float64)
        tokens = policy_tokens(
            tables.log_ratio(logp),
            tables.advantage,
            ref_gap=tables.ref_gap(logp),
            clip=self.clip,
        )
        policy_loss = weighted_sum(-tokens.surrogate, tables.policy)
        anchor_loss = weighted_sum(-logp, tables.anchor)
        kl_loss = torch.zeros_like(policy_loss)
        if tokens.kl is not None and tables.kl_is_own_term:
            kl_loss = weighted_sum(tokens.kl, tables.kl)
        elif tokens.kl is not None:
            policy_loss = policy_loss + weighted_sum(tokens.kl, tables.kl)
        rl_weight = tables.rl_weight.to(logp.dtype)
        loss = rl_weight * policy_loss + (1.0 - rl_weight) * anchor_loss + kl_loss
        with torch.no_grad():
            entropy = None if scores.entropy is None else scores.entropy.to(torch.float64)
            metrics, totals = tables.metrics.of_tokens(tokens, entropy)
        losses = with_released_names(
            {
                "policy_loss": policy_loss.detach(),
                "anchor_loss": anchor_loss.detach(),
                "kl_loss": kl_loss.detach(),
                "loss": loss.detach(),
            }
        )
        mixture = with_released_names(
            {"rl_weight": tables.rl_weight, "anchor_weight": 1.0 - tables.rl_weight}
        )
        dtype = scores.logp.dtype
        return HybridOutput(
            loss=loss.to(dtype),
            policy_loss=policy_loss.detach().to(dtype),
            anchor_loss=anchor_loss.detach().to(dtype),
            kl_loss=kl_loss.detach().to(dtype),
            rl_weight=tables.rl_weight,
            logp=scores.logp.detach(),
            metrics=losses | mixture | metrics,
            totals=MetricTotals(losses) + totals,
        )

    def _rl_weight(
        self, batch: HybridBatch, given: torch.Tensor | float | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """λ, 0-d, and the gate's metrics: the λ given, else a constant, else a step of the gate."""
        fixed = given if given is not None else self.gate
        if isinstance(fixed, MixingGate):
            assert batch.rewards is not None  # else `_check_inputs` has refused the batch
            return fixed.step(batch.rewards, self.options)
        if isinstance(fixed, torch.Tensor):
            return _checked_rl_weight(fixed), {}
        fixed = finite_number("rl_weight", fixed, low=0.0, high=1.0)
        return torch.full((), fixed, dtype=torch.float32, device=batch.of_rollouts.device), {}

    def _check_inputs(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor | HeadShard,
        batch: HybridBatch,
        rl_weight: torch.Tensor | float | None,
        normalisers: Normalisers | None,
    ) -> None:
        """Refuses arguments of the wrong type, shape or device before the gate moves."""
        check_tensor("hidden", hidden)
        check_type("batch", batch, HybridBatch)
        if normalisers is not None:
            check_type("normalisers", normalisers, Normalisers)
        if hidden.dim() < 2:
            raise ValueError(f"hidden: got shape {tuple(hidden.shape)}, want [T, H] or [R, L, H]")
        check_head(weight, self.layout)
        positions, wanted = hidden.shape[:-1].numel(), batch.targets.shape[0]
        if positions != wanted:
            raise ValueError(
                f"hidden has {positions} positions, want {wanted}, those of batch.targets"
            )
        if rl_weight is None and isinstance(self.gate, MixingGate) and batch.rewards is None:
            raise ValueError(
                "batch.rewards: got None, want the rewards that the MixingGate computes λ from; "
                "beside advantages give rl_weight, such as gate(rewards) of the whole step, or a "
                "constant gate"
            )
        if batch.ref_logp is None and (self.kl_weights.text > 0 or self.kl_weights.speech > 0):
            raise ValueError(
                f"text_kl = {self.kl_weights.text}, speech_kl = {self.kl_weights.speech} need "
                "batch.ref_logp, got None"
            )
        given = {f"batch.{field.name}": getattr(batch, field.name) for field in fields(batch)}
        given["rl_weight"] = rl_weight
        if rl_weight is None and isinstance(self.gate, MixingGate):
            given["gate.value"] = next(self.gate.buffers())
        if normalisers is not None:
            for field in fields(normalisers):
                given[f"normalisers.{field.name}"] = getattr(normalisers, field.name)
        tables = {name: v for name, v in given.items() if isinstance(v, torch.Tensor)}
        refuse_meta(hidden.device, **tables)
        refuse_in_capture(hidden.device, **tables)

    def _warn_of_idle_options(self, batch: HybridBatch) -> None:
        """Warns once of options and shapes that are allowed but have no effect together."""
        if self.clip is not None and batch.old_logp is None:
            warn_once(
                f"clip = {self.clip} without batch.old_logp: every ratio is 1, so nothing is ever "
                "clipped; give the log-probs under the policy that sampled"
            )
        if batch.rewards is not None and len(batch.rewards) > 0 and batch.group_size == 1:
            warn_once(
                "rewards [B, 1]: in groups of 1 every advantage is 0, so the policy term teaches "
                "nothing; sample more rollouts a prompt"
            )


def _checked_gate(gate: MixingGate | float) -> MixingGate | float:
    if isinstance(gate, MixingGate):
        return gate
    try:
        return finite_number("gate", gate, low=0.0, high=1.0)
    except ValueError:
        raise ValueError(f"gate: got {gate!r}, want a MixingGate or a λ in [0, 1]") from None


def _checked_rl_weight(value: torch.Tensor) -> torch.Tensor:
    """λ as 0-d without a gradient; its range is checked on the CPU only, without a host sync."""
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"rl_weight: got {value.dtype} of shape {tuple(value.shape)}, want a λ in [0, 1], a "
            "number or a 0-d floating tensor"
        )
    if can_be_read(value):
        finite_number("rl_weight", value.detach(), low=0.0, high=1.0)
    return value.detach().reshape(())
