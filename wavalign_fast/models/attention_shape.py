"""What a model's attention costs, read from its config: heads, their size, windows of keys."""

from typing import Any


def head_size(config: Any) -> int:
    """Returns the size of an attention head, of queries, keys and values alike."""
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


def key_heads(config: Any) -> int:
    """Returns the number of heads that keys and values have."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def attention_windows(config: Any) -> tuple[int | None, ...]:
    """Returns for each layer with attention how many keys a query sees; ``None`` = all before it.

    A layer of another kind (a state-space or linear-attention layer) is left out.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:  # all layers alike, as in Mistral
        return (window,) * config.num_hidden_layers
    windows = {"full_attention": None, "sliding_attention": window}
    own = tuple(windows[kind] for kind in kinds if kind in windows)
    # Kimi-Audio's layers of the audio stream, which are like the text's last ones.
    return own + own[-1:] * getattr(config, "mimo_layers", 0)
