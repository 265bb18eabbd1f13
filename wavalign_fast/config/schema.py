"""The typed configuration of a training run: every key, its default and what it does.

``wavalign_fast.config.layers`` reads it from files and the command line.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import Self

# Upper bounds are far beyond any use: a slip of the keyboard is refused by the name of its key,
# before anything is loaded, and not by a library in the middle of a run.
MANY = 1_000_000_000
MOST_ROWS = 1_000_000
MOST_TOKENS = 1_000_000
MOST_IDS = 2**31
MOST_THREADS = 1024
LARGEST_SEED = 2**63 - 1
LONGEST_NAME = 200
LARGEST = 1e6

Scope = Literal["text", "speech", "all"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0.0, le=LARGEST, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, le=LARGEST, allow_inf_nan=False)]
ClipLow = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=MANY)]
AtLeastOne = Annotated[int, Field(ge=1, le=MANY)]
Rows = Annotated[int, Field(ge=0, le=MOST_ROWS)]
AtLeastOneRow = Annotated[int, Field(ge=1, le=MOST_ROWS)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]


def _pair(value: Any) -> Any:
    """YAML has lists only; strict validation wants the tuple."""
    return tuple(value) if isinstance(value, list) else value


class Group(BaseModel):
    """A strict, immutable group of keys: no unknown key, no silent conversion."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


class RolloutConfig(Group):
    """How completions are sampled. Nothing is sampled where the loss has no use for them."""

    prompts: AtLeastOneRow = 8
    """Prompts per step."""
    group_size: AtLeastOneRow = 8
    """Completions per prompt; the advantage compares them with each other, so 1 teaches nothing."""
    temperature: Annotated[float, Field(ge=1e-4, le=1e4, allow_inf_nan=False)] = 1.0
    """Sampling temperature. Log-probs are taken at the same temperature."""
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] = 72
    """Longest completion, the end-of-sequence token included."""

    @model_validator(mode="after")
    def _ids_fit_into_memory(self) -> Self:
        ids = self.prompts * self.group_size * self.max_new_tokens
        if ids > MOST_IDS:
            raise ValueError(
                f"prompts {self.prompts} × group_size {self.group_size} × max_new_tokens "
                f"{self.max_new_tokens} is {ids} ids a step, wanted at most {MOST_IDS}"
            )
        return self


class AnchorConfig(Group):
    """The demonstrations behind the cross-entropy anchor."""

    rows: Rows = 32
    """Demonstrations per step: first of the step's own prompts, then of further ones; 0 = none."""


class GateConfig(Group):
    """Adaptive mixture: λ = EMA of λ_max · σ(slope·(max R − threshold)) · Var(R)/variance_scale."""

    lambda_max: Fraction = 0.8
    """Largest weight the policy term can get."""
    ema: Fraction = 0.9
    """Share of the last step's λ in the next one."""
    slope: Weight = 5.0
    """Steepness of the gate on the best reward of a group."""
    threshold: Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)] = 3.0
    """Best reward at which the gate is half open, on the reward's own scale."""
    variance_scale: Positive = 4.0
    """Variance of a group's rewards that opens the gate fully; 4 is the largest on a 1-5 scale."""


class LossConfig(Group):
    """The hybrid loss λ·policy + (1 − λ)·anchor."""

    policy_scope: Scope = "text"
    """Rollout tokens that the reward acts on."""
    anchor_scope: Scope = "all"
    """Demonstration tokens that the cross entropy acts on."""
    text_weight: Weight = 1.0
    """Weight of text tokens in the policy term."""
    speech_weight: Weight = 1.0
    """Weight of speech tokens in the policy term."""
    anchor_text_weight: Weight = 1.0
    """Weight of text tokens in the anchor."""
    anchor_speech_weight: Weight = 1.0
    """Weight of speech tokens in the anchor."""
    text_kl: Weight = 0.0
    """KL coefficient of text tokens. With both coefficients 0 no reference model is loaded."""
    speech_kl: Weight = 0.0
    """KL coefficient of speech tokens."""
    kl_scope: Literal["policy", "completion"] = "policy"
    """``policy``: KL on the policy term's tokens; ``completion``: a mean of its own over all."""
    clip: ClipLow | Annotated[tuple[ClipLow, Positive], BeforeValidator(_pair)] | None = None
    """Clip range of the probability ratio, one ε or [low, high]; none on purely on-policy steps."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """One ratio a token or a completion; the same on purely on-policy steps."""
    normalisation: Literal["sequence", "token"] = "sequence"
    """Means over rows of token means, or over all tokens alike, in policy, anchor and KL."""
    advantage_std: Literal["population", "sample"] = "population"
    """Which standard deviation scales the advantages."""
    mixing: Literal["adaptive"] | Fraction = "adaptive"
    """λ: ``adaptive`` (the gate) or a constant; 0 = anchor only, 1 = policy only."""
    gate: GateConfig = GateConfig()
    """The gate of adaptive mixing."""
    backend: Literal["auto", "cpu", "triton", "cuda", "reference"] = "auto"
    """Kernels of the fused loss. One named here that is absent is an error, never a fallback."""


class OptimizerConfig(Group):
    """AdamW and its learning-rate schedule."""

    lr: Weight = 1e-4
    """Peak learning rate."""
    betas: Annotated[tuple[Decay, Decay], BeforeValidator(_pair)] = (0.9, 0.999)
    """Decay of the first and the second moment."""
    eps: Annotated[float, Field(ge=1e-30, le=1.0, allow_inf_nan=False)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Weight = 0.0
    """Decoupled weight decay, on matrices only (not on norms and biases)."""
    clip_norm: Weight = 1.0
    """Largest norm of the whole gradient; 0 = no clipping."""
    warmup_steps: Count = 0
    """Steps of linear warm-up from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: hold the rate, or let it fall to 0 along a cosine."""


class TrainConfig(Group):
    """The length of a run and what is kept of it."""

    steps: Count = 150
    """Optimizer steps in all."""
    seed: Seed = 0
    """Seed of prompt order, sampling and demonstrations."""
    threads: Annotated[int, Field(ge=0, le=MOST_THREADS)] = 1
    """CPU threads of torch, 0 = its choice. One is fastest for tiny models on a busy machine."""
    log_every: AtLeastOne = 10
    """Steps between two printed lines (every step is in metrics.jsonl)."""
    eval_items: Rows = 400
    """Held-out spoken answers of an evaluation; 0 = no evaluation."""
    eval_seed: Seed = 0
    """Seed of the evaluation's sampling, the same for the base model and every arm."""
    checkpoint_every: Count = 50
    """Steps between checkpoints; 0 = only at the end and when stopped."""
    keep_checkpoints: AtLeastOne = 1
    """Checkpoints to keep: the newest is ``checkpoint/``, older ones are ``checkpoints/step-*``."""
    block_tokens: AtLeastOne = 1024
    """Positions per call of the model: rows of like length share a call, to save padding."""
    max_nonfinite_steps: AtLeastOne = 5
    """Steps in a row that may be skipped for a non-finite gradient before the run stops."""


class RunConfig(Group):
    """One training run, as ``config.yaml`` of its directory records it."""

    name: (
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)]
        | None
    ) = None
    """Directory under the output folder; by default made from recipe and arm."""
    recipe: str
    """The recipe that gives model, prompts, demonstrations and rewards."""
    arm: str | None = None
    """The recipe's variant whose overlay was applied."""
    task: dict[str, Any] = {}
    """Options of the recipe itself; the recipe refuses what it does not know."""
    rollout: RolloutConfig = RolloutConfig()
    """Sampling."""
    anchor: AnchorConfig = AnchorConfig()
    """Demonstrations."""
    loss: LossConfig = LossConfig()
    """The hybrid loss."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW."""
    train: TrainConfig = TrainConfig()
    """Length, seeds, logging, checkpoints."""

    @model_validator(mode="after")
    def _has_something_to_learn(self) -> Self:
        if not self.needs_rollouts and not self.needs_anchor:
            raise ValueError(
                f"nothing to learn from: loss.mixing {self.loss.mixing} and anchor.rows "
                f"{self.anchor.rows}; wanted a policy weight above 0 or demonstrations"
            )
        return self

    @property
    def needs_rollouts(self) -> bool:
        """Whether completions, and so rewards, can change the loss at all."""
        return self.loss.mixing != 0.0 or self._kl_of_its_own

    @property
    def needs_anchor(self) -> bool:
        """Whether demonstrations can change the loss at all."""
        return self.anchor.rows > 0 and self.loss.mixing != 1.0

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen copy of the base model is needed for the KL."""
        return self.needs_rollouts and (self.loss.text_kl > 0 or self.loss.speech_kl > 0)

    @property
    def _kl_of_its_own(self) -> bool:
        loss = self.loss
        return loss.kl_scope == "completion" and (loss.text_kl > 0 or loss.speech_kl > 0)
