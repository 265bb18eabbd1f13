"""What a model of transformers does to its logits, read from its configuration."""

from typing import Any

from wavalign_fast.errors import UserError, shown
from wavalign_fast.ops import LogitTransform

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Of Gemma and its kin, RecurrentGemma, xLSTM."""
FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""Of Cohere, Muse, Falcon-H1."""
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
"""Of Granite and MiniCPM, of Inkling."""
MULTIPLY_BY_SCALING = ("hyperclovax",)


def logit_transform(model: Any) -> LogitTransform:
    """The scale and the soft cap of a model's logits; its bias is added before any temperature.

    Args:
        model: anything; without a configuration it does nothing to its logits.

    Raises:
        UserError: a value in the configuration that is no number above 0, two scales, or logits of
            the last ids left out (Inkling).
    """
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    caps, factors = _given(config, SOFTCAPS), _given(config, (*FACTORS, *DIVISORS))
    for found in (caps, factors):
        if len(found) > 1:
            raise UserError(f"the model's configuration: got {found}, want at most one of them")
    kept = getattr(config, "unpadded_vocab_size", None)
    if kept is not None and kept < config.vocab_size:
        raise UserError(
            f"unpadded_vocab_size of the model: got {kept}, want {config.vocab_size}, all its ids"
        )
    (scale,) = factors.values() or (1.0,)
    if factors.keys() & set(DIVISORS) and config.model_type not in MULTIPLY_BY_SCALING:
        scale = 1.0 / scale
    (cap,) = caps.values() or (None,)
    return LogitTransform(scale=scale, softcap=cap, bias_added="before_temperature")


def _given(config: Any, names: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for name in names:
        value = getattr(config, name, None)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f"{name} of the model: got {shown(value)}, want a number > 0")
        found[name] = float(value)
    return found
