"""Figures from others: peak rates of the vendor's data sheets, and times that rivals published."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The data sheet of a GPU; every rate is a peak that no program reaches."""

    name: str
    source: str
    arch: int
    """90 for sm_90."""
    matrix_flops: float
    """bf16 GEMMs with fp32 sums, without sparsity, per second."""
    memory_bytes: float
    """Bytes between the chip and its memory per second."""
    vector_flops: float
    """fp32 outside GEMMs, per second."""
    multiprocessors: int
    lanes: int
    """fp32 lanes of a multiprocessor, each one multiply-add per clock."""
    l2_bytes: int
    shared_bytes: int
    """The most shared memory that one block can have."""

    @property
    def clock_hz(self) -> float:
        """The clock at which the data sheet's fp32 rate is reached."""
        return self.vector_flops / (2 * self.lanes * self.multiprocessors)

    @property
    def special_functions(self) -> float:
        """Exponentials per second: 16 per clock and multiprocessor (CUDA's programming guide)."""
        return 16 * self.multiprocessors * self.clock_hz

    @property
    def warp_instructions(self) -> float:
        """Issued per second: four schedulers per multiprocessor, each one per clock."""
        return 4 * self.multiprocessors * self.clock_hz


GPUS = (
    Gpu(
        name="A100",
        source="NVIDIA A100 Tensor Core GPU data sheet and Ampere white paper, 80 GB SXM",
        arch=80,
        matrix_flops=312e12,
        memory_bytes=2039e9,
        vector_flops=19.5e12,
        multiprocessors=108,
        lanes=64,
        l2_bytes=40 * 2**20,
        shared_bytes=163 * 1024,
    ),
    Gpu(
        name="H100",
        source="NVIDIA H100 Tensor Core GPU data sheet and Hopper white paper, SXM5",
        arch=90,
        matrix_flops=989.4e12,
        memory_bytes=3350e9,
        vector_flops=66.9e12,
        multiprocessors=132,
        lanes=128,
        l2_bytes=50 * 2**20,
        shared_bytes=227 * 1024,
    ),
    Gpu(
        name="H200",
        source="NVIDIA H200 Tensor Core GPU data sheet, SXM; the chip is that of the H100",
        arch=90,
        matrix_flops=989.4e12,
        memory_bytes=4800e9,
        vector_flops=66.9e12,
        multiprocessors=132,
        lanes=128,
        l2_bytes=50 * 2**20,
        shared_bytes=227 * 1024,
    ),
    Gpu(
        name="B200",
        source="NVIDIA Blackwell architecture technical brief, HGX B200; 148 multiprocessors",
        arch=100,
        matrix_flops=2250e12,
        memory_bytes=8000e9,
        vector_flops=80e12,
        multiprocessors=148,
        lanes=128,
        l2_bytes=126 * 2**20,
        shared_bytes=227 * 1024,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A time that others published for forward and backward pass over all rows."""

    who: str
    gpu: str
    """Name in ``GPUS``."""
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
