"""The C++ ops of one decoded token: their fake kernels, and when they can be used."""

import functools

import torch

from wavalign_fast.ops.extension import EXTENSION

DTYPES = (torch.float32, torch.bfloat16)
"""What the kernels of a decoded token take."""


def kernels_take(tensor: torch.Tensor) -> bool:
    """Whether the C++ ops of a decoded token can be called with a tensor like this one."""
    return not isinstance(EXTENSION, str) and tensor.is_cpu and tensor.dtype in DTYPES


@functools.cache
def linear_is_fast(dtype: torch.dtype) -> bool:
    """Whether ``decode_linear`` takes a dtype and is faster than a GEMM of a few rows.

    It is not where the compiler has no wide vectors for it.
    """
    wide = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return dtype == torch.float32 and wide


def _register() -> None:
    @torch.library.register_fake("wavalign_fast::decode_attention")
    def _(qkv, a, b, c, d, e, f, keys, *rest):  # type: ignore[no-untyped-def]
        return qkv.new_empty(qkv.shape[0], qkv.shape[1] - 2 * keys.shape[1] * keys.shape[3])

    @torch.library.register_fake("wavalign_fast::add_rms_norm_")
    def _(x, update, weight, eps):  # type: ignore[no-untyped-def]
        return torch.empty_like(x)

    @torch.library.register_fake("wavalign_fast::decode_linear")
    def _(x, weights, biases):  # type: ignore[no-untyped-def]
        return x.new_empty(x.shape[0], sum(weight.shape[0] for weight in weights))

    @torch.library.register_fake("wavalign_fast::silu_mul")
    def _(gate_up):  # type: ignore[no-untyped-def]
        return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)

    @torch.library.register_fake("wavalign_fast::choose_tokens")
    def _(logits, uniform, temperature):  # type: ignore[no-untyped-def]
        return uniform.new_empty(uniform.shape, dtype=torch.int64), uniform.float()


if not isinstance(EXTENSION, str):
    _register()
