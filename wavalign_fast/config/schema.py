"""Every key of a training run's configuration, with its type, default and meaning.

``wavalign_fast.config.layers`` fills it from files and the command line.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from wavalign_fast.config.dpo import DPOConfig
from wavalign_fast.config.gate import GateConfig
from wavalign_fast.config.group import (
    LONGEST_NAME,
    MOST_THREADS,
    AsTuple,
    AtLeastOne,
    ClipLow,
    Count,
    Decay,
    Fraction,
    Group,
    ImportanceCap,
    Positive,
    Rows,
    Scope,
    Seed,
    Weight,
)
from wavalign_fast.config.model import ModelConfig
from wavalign_fast.config.parallel import ParallelConfig
from wavalign_fast.config.rollout import RolloutConfig
from wavalign_fast.config.telemetry import TelemetryConfig


class AnchorConfig(Group):
    """The demonstrations of the cross-entropy anchor."""

    rows: Rows = 32
    """Demonstrations per step; the first ones answer the step's rollout prompts. 0 = no anchor."""
    mtp_loss_weight: Weight | Literal["model"] = 0.0
    """Weight of the loss of the model's multi-token-prediction layers on the demonstrations, which
    trains them; model: that of its config.json. 0: they stay as they are, also in an export."""


class LossConfig(Group):
    """The hybrid loss, λ·policy + (1 − λ)·anchor."""

    policy_scope: Scope = "text"
    """Tokens of a completion that carry the policy loss."""
    anchor_scope: Scope = "all"
    """Tokens of a demonstration that carry the cross entropy. The paper anchors all of them."""
    text_weight: Weight = 1.0
    """Weight of a text token in the policy term."""
    speech_weight: Weight = 1.0
    """Weight of a speech token in the policy term."""
    anchor_text_weight: Weight = 1.0
    """Weight of a text token in the anchor."""
    anchor_speech_weight: Weight = 1.0
    """Weight of a speech token in the anchor."""
    text_kl: Weight = 0.0
    """KL coefficient of text tokens. If both coefficients are 0, no reference model is kept."""
    speech_kl: Weight = 0.0
    """KL coefficient of speech tokens."""
    kl_scope: Literal["policy", "completion"] = "policy"
    """``policy``: the KL is in the policy term; ``completion``: its own mean over all tokens."""
    clip: ClipLow | Annotated[tuple[ClipLow, Positive], AsTuple] | None = None
    """PPO clip range, ε or [low, high], from the second update of train.updates_per_rollout on. In
    the first one every ratio is 1."""
    importance_cap: ImportanceCap | None = None
    """Weigh the policy loss of a token by the ratio of the trainer's probability to the sampler's,
    up to this cap (truncated importance sampling); it costs a forward pass. null: no weights."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """One probability ratio per token or per completion (GSPO). Equal while on-policy."""
    normalisation: Literal["sequence", "token"] = "sequence"
    """``sequence``: mean over rows of token means; ``token``: mean over all tokens (DAPO)."""
    advantage_std: Literal["population", "sample"] = "population"
    """The standard deviation that divides the advantages."""
    mixing: Literal["adaptive"] | Fraction = "adaptive"
    """λ: ``adaptive`` (set by the gate) or a constant. 0 = anchor only, 1 = policy only."""
    gate: GateConfig = GateConfig()
    """Settings of the gate for adaptive λ."""
    backend: Literal["auto", "cpu", "triton", "cuda", "reference"] = "auto"
    """Kernels of the fused loss. Naming a backend that is not available is an error."""


class OptimizerConfig(Group):
    """The optimizer and its learning-rate schedule."""

    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """``adamw8bit``: AdamW with moments of 8 bits (package torchao), which rounds stochastically to
    bfloat16 weights; ``muon``: Muon for the matrices of the layers, AdamW for all else."""
    lr: Weight = 1e-4
    """Peak learning rate."""
    betas: Annotated[tuple[Decay, Decay], AsTuple] = (0.9, 0.999)
    """Decay rates of the first and second moments."""
    eps: Annotated[float, Field(ge=1e-30, le=1.0, allow_inf_nan=False)] = 1e-8
    """Added to the square root of the second moment."""
    momentum: Decay = 0.95
    """Decay rate of Muon's momentum."""
    weight_decay: Weight = 0.0
    """Decoupled weight decay of matrices; norms and biases have none."""
    clip_norm: Weight = 1.0
    """Maximum norm of the whole gradient; 0 = no clipping."""
    warmup_steps: Count = 0
    """Steps of linear warm-up from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a cosine that falls to 0."""


class TrainConfig(Group):
    """Length of the run, logging, evaluation and checkpoints."""

    steps: Count = 150
    """Total number of steps, each with its own rollouts and demonstrations."""
    updates_per_rollout: AtLeastOne = 1
    """Optimizer updates from the rows of a step. From the second on they are off-policy: set
    loss.clip."""
    seed: Seed = 0
    """Seed of the prompt order, the sampling and the demonstrations."""
    threads: Annotated[int, Field(ge=0, le=MOST_THREADS)] = 1
    """CPU threads of torch; 0 = torch's default. One is fastest for tiny models."""
    log_every: AtLeastOne = 10
    """Steps between two printed lines. metrics.jsonl has every step."""
    eval_items: Rows = 400
    """Held-out answers per evaluation; 0 = no evaluation."""
    eval_seed: Seed = 0
    """Seed of the sampling in evaluations, the same for the base model and every arm."""
    eval_every: Count = 0
    """Steps between evaluations during training; 0 = only before and after it."""
    keep_best: Annotated[str, Field(min_length=1)] | None = None
    """Metric of the evaluation, such as text_accuracy: the checkpoint with its best value is kept,
    however old."""
    best_is: Literal["highest", "lowest"] = "highest"
    """Which value of train.keep_best is the best."""
    early_stop: Count = 0
    """Evaluations in a row without a new best one after which the run stops; 0 = never."""
    checkpoint_every: Count = 50
    """Steps between checkpoints; 0 = only at the end and when the run is stopped."""
    keep_checkpoints: AtLeastOne = 1
    """How many checkpoints to keep: ``checkpoint/`` and older ones in ``checkpoints/step-*``."""
    async_checkpoint: bool = False
    """Write a checkpoint beside the next steps, from a copy of the state in the CPU's memory."""
    block_tokens: AtLeastOne = 1024
    """Token positions per forward pass. Rows of similar length share one, to save padding, and the
    row that reaches the number is the last; packed rows (model.attention) stay below it."""
    max_nonfinite_steps: AtLeastOne = 5
    """Consecutive steps with a non-finite gradient after which the run stops."""

    @model_validator(mode="after")
    def _evaluates_what_it_keeps(self) -> Self:
        if self.eval_every > 0 and self.eval_items == 0:
            raise ValueError(f"eval_every {self.eval_every} with eval_items 0, wanted items")
        if self.keep_best is not None and self.eval_every == 0:
            raise ValueError(f"keep_best {self.keep_best} with eval_every 0, wanted evaluations")
        if self.early_stop > 0 and self.keep_best is None:
            raise ValueError(f"early_stop {self.early_stop} without keep_best, wanted a metric")
        return self


class RunConfig(Group):
    """One training run, as recorded in ``config.yaml`` of its directory."""

    name: (
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)]
        | None
    ) = None
    """Name of the run directory; by default made from recipe and arm."""
    recipe: str
    """Recipe that provides the model, prompts, demonstrations and rewards."""
    arm: str | None = None
    """Variant of the recipe."""
    task: dict[str, Any] = Field(default={})
    """Options of the recipe. Unknown ones are refused."""
    method: Literal["hybrid", "dpo"] = "hybrid"
    """hybrid: the loss of ``loss`` over rollouts and demonstrations; dpo: preference pairs, by
    ``dpo``, without ``anchor`` and of ``loss`` only its backend."""
    model: ModelConfig = ModelConfig()
    """The weights that are trained, and how they are computed with."""
    rollout: RolloutConfig = RolloutConfig()
    """Sampling of completions."""
    anchor: AnchorConfig = AnchorConfig()
    """Demonstrations of the anchor."""
    loss: LossConfig = LossConfig()
    """The hybrid loss."""
    dpo: DPOConfig = DPOConfig()
    """Preference pairs and their loss."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its schedule."""
    parallel: ParallelConfig = ParallelConfig()
    """How ranks share the model."""
    telemetry: TelemetryConfig = TelemetryConfig()
    """Where metrics go, and a profile."""
    train: TrainConfig = TrainConfig()
    """Length, seeds, logging and checkpoints."""

    @model_validator(mode="after")
    def _has_something_to_learn(self) -> Self:
        if self.method == "hybrid" and not self.needs_rollouts and not self.needs_anchor:
            raise ValueError(
                f"nothing to learn from: loss.mixing {self.loss.mixing} and anchor.rows "
                f"{self.anchor.rows}; wanted a policy weight above 0 or demonstrations"
            )
        return self

    @model_validator(mode="after")
    def _can_train_mtp(self) -> Self:
        others = {
            "method": (self.method, "hybrid"),
            "parallel.head": (self.parallel.head, "gathered"),
            "model.lora.rank": (self.model.lora.rank, 0),
        }
        for key, (given, wanted) in others.items():
            if self.anchor.mtp_loss_weight and given != wanted:
                raise ValueError(
                    f"{key}: {given} given with anchor.mtp_loss_weight, wanted {wanted}, or a "
                    "weight of 0"
                )
        return self

    @model_validator(mode="after")
    def _profile_is_within_the_run(self) -> Self:
        window = self.telemetry.profile_steps
        if window is not None and window[1] > self.train.steps:
            raise ValueError(
                f"telemetry.profile_steps: {list(window)} given, wanted at most train.steps, "
                f"{self.train.steps}"
            )
        return self

    @model_validator(mode="after")
    def _stale_rollouts_are_weighed(self) -> Self:
        stale = self.rollout.vllm.max_staleness
        if stale and self.method == "hybrid" and self.loss.importance_cap is None:
            raise ValueError(
                f"rollout.vllm.max_staleness: {stale} given, wanted loss.importance_cap with it, "
                "which weighs ids of older weights"
            )
        return self

    @property
    def needs_rollouts(self) -> bool:
        """Whether any term of the loss uses completions."""
        if self.method == "dpo":
            return self.dpo.pairs != "offline"
        return self.loss.mixing != 0.0 or self._has_separate_kl

    @property
    def needs_rewards(self) -> bool:
        """Whether completions are judged."""
        return self.needs_rollouts and (self.method != "dpo" or self.dpo.chosen == "best")

    @property
    def needs_anchor(self) -> bool:
        """Whether any term of the loss uses demonstrations."""
        return self.method == "hybrid" and self.anchor.rows > 0 and self.loss.mixing != 1.0

    @property
    def needs_reference(self) -> bool:
        """Whether the KL or DPO needs a frozen copy of the base model."""
        if self.method == "dpo":
            return True
        return self.needs_rollouts and (self.loss.text_kl > 0 or self.loss.speech_kl > 0)

    @property
    def _has_separate_kl(self) -> bool:
        loss = self.loss
        return loss.kl_scope == "completion" and (loss.text_kl > 0 or loss.speech_kl > 0)
