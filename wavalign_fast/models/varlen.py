"""The attention ``varlen``, made for packed rows; ``set_attention`` registers it.

Imported with its first use: ``torch.compiler.disable`` imports the compiler of torch.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from wavalign_fast.errors import UserError

FLASH_DTYPES = (torch.bfloat16, torch.float16)
UNSUPPORTED = ("softcap", "position_bias", "s_aux")
"""Arguments of transformers' attention functions that change the scores."""


def varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention of packed rows, as an attention function of transformers.

    Args:
        query: [1, heads, T, D]; keys and values [1, heads or fewer, T, D].
        cu_seq_lens_q: int32 [R + 1], the borders of R rows; without them this is ``sdpa``.
        sliding_window: a position attends to this many last positions, its own included.

    Returns:
        [1, T, heads, D].

    Raises:
        UserError: a mask beside the borders, which would be ignored; an argument that torch's
            kernel does not know; or packed rows without borders.
    """
    packed = attention_mask is not None and attention_mask.numel() == 0
    if cu_seq_lens_q is None and not packed:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others
        )
    if cu_seq_lens_q is None or max_length_q is None:
        raise UserError(
            f"packed rows: {type(module).__name__} got no borders, wanted a model that hands "
            "cu_seq_lens_q and max_length_q on to its attention"
        )
    if attention_mask is not None and not packed:
        raise UserError(
            f"packed rows: got a mask of shape {tuple(attention_mask.shape)} as well, wanted none: "
            "their borders say what a position may see"
        )
    refused = [name for name in UNSUPPORTED if others.get(name) is not None]
    if refused or dropout:
        seen = ", ".join(refused) or f"dropout {dropout}"
        raise UserError(f"packed rows: varlen got {seen}, wanted a model without; take eager")
    window = sliding_window if sliding_window and sliding_window < max_length_q else None
    if query.is_cuda and query.dtype in FLASH_DTYPES:
        q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))  # [T, heads, D]
        return _flash(q, k, v, cu_seq_lens_q, max_length_q, scaling, window)[None], None
    rows = _row_by_row(query, key, value, cu_seq_lens_q, scaling, window)
    return rows.transpose(1, 2), None


@torch.compiler.disable(reason="the lengths of the rows are read on the host")
def _row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: Tensor,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """One causal call a row, [1, heads, T, D]; a window shorter than a row takes a mask."""
    lengths = borders.diff().tolist()
    # Split, not sliced: the backward pass of each slice would write a whole [T] gradient.
    rows = zip(*(each.split(lengths, dim=2) for each in (query, key, value)), strict=True)
    done = []
    for q, k, v in rows:
        length = q.shape[2]
        mask = None
        if window is not None and window < length:
            mask = torch.ones(length, length, dtype=torch.bool, device=q.device)
            mask = mask.tril().triu(1 - window)
        done.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
            )
        )
    return torch.cat(done, 2)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Torch's kernel over all rows, [T, heads, D].

    In torch 2.10 it computes q·k/√D alone, for as many heads of keys as of queries, and no window.
    """
    from torch.nn.attention import varlen

    kernel: Any = varlen.varlen_attn
    known = inspect.signature(kernel).parameters
    options: dict[str, Any] = {}
    if "window_size" in known:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None:
        options["is_causal"] = True
    else:
        raise UserError(
            f"packed rows: a sliding window of {window} is shorter than a row of {longest}, which "
            f"torch {torch.__version__} cannot compute on a GPU; take sdpa, or a newer torch"
        )
    if "scale" in known:
        options["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    else:
        group = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(group, dim=1) for each in (key, value))
    return kernel(query, key, value, borders, borders, longest, longest, **options)
