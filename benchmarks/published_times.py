"""Times that others published for their heads and losses, each with its source."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Published:
    """A time that others published for forward and backward pass over all rows."""

    who: str
    gpu: str
    """Name in ``gpu_specifications.GPUS``."""
    rows: int
    hidden: int
    vocab: int
    products: int
    """GEMMs over all rows that the method computes."""
    milliseconds: float
    source: str


_SCALED_CE = "Liger-Kernel, README of its scaled cross-entropy, bf16"
_QUACK = "QuACK, its comparison with Liger-Kernel, bf16"
_FLCE = "Liger-Kernel 0.4.2, benchmark CSV of its fused linear cross-entropy, bf16"
_CCE = "Cut Cross-Entropy, README, Gemma 2 2B"


def _published(
    who: str, gpu: str, size: tuple[int, int, int], products: int, milliseconds: float, source: str
) -> Published:
    rows, hidden, vocab = size
    return Published(
        who=who, gpu=gpu, rows=rows, hidden=hidden, vocab=vocab, products=products,
        milliseconds=milliseconds, source=source,
    )  # fmt: skip


PUBLISHED = (
    _published("Liger scaled CE, CuTe", "H100", (8192, 4096, 131072), 4, 50.39, _SCALED_CE),
    _published("the same with entropy", "H100", (8192, 4096, 131072), 4, 50.22, _SCALED_CE),
    _published("verl, torch", "H100", (8192, 4096, 131072), 4, 128.76, _SCALED_CE),
    _published("verl, torch, with entropy", "H100", (8192, 4096, 131072), 4, 165.63, _SCALED_CE),
    _published("Liger scaled CE, CuTe", "H100", (16384, 4096, 131072), 4, 104.77, _SCALED_CE),
    _published("Liger scaled CE, CuTe", "H100", (32768, 4096, 131072), 4, 211.30, _SCALED_CE),
    _published("QuACK chunked CE", "H200", (4096, 4096, 128256), 3, 17.33, _QUACK),
    _published("Liger CuTe CE", "H200", (4096, 4096, 128256), 3, 18.06, _QUACK),
    _published("Liger Triton CE", "H200", (4096, 4096, 128256), 3, 141.0, _QUACK),
    _published("Liger Triton CE", "A100", (4096, 4096, 128256), 3, 121.0, _FLCE),
    _published("Liger Triton CE", "A100", (32768, 4096, 128256), 3, 511.0, _FLCE),
    _published(
        "Cut Cross-Entropy, which leaves tiles out", "A100", (8192, 2304, 256000), 4, 134.8, _CCE
    ),
    _published("torch.compile", "A100", (8192, 2304, 256000), 3, 144.0, _CCE),
)
