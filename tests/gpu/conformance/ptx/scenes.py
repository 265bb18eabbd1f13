"""Launches that run mutated kernels: each raises or fails an assertion if something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from tests.gpu.conformance import problems
from tests.gpu.conformance.checks import check_rows, check_stats
from tests.gpu.conformance.problems import SETTINGS
from tools.ptx_emulator import Conditions
from wavalign_fast.ops.chunked import row_ops as definition
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats
from wavalign_fast.ops.token_math import TokenTable

from .triton_kernels import EmulatedTriton, TritonRowKernels

Rewrite = Callable[[str], str]


@dataclass(frozen=True)
class Scene:
    kernel: str
    """Part of the name of the kernel to mutate."""
    target: str
    launch: Callable[[str, Conditions, Rewrite], None]

    def run(self, conditions: Conditions, rewrite: Rewrite) -> None:
        self.launch(self.target, conditions, rewrite)


def score(target: str, conditions: Conditions, rewrite: Rewrite) -> None:
    """Several tiles of ids and steps of the hidden size, a ragged end of both."""
    from wavalign_fast.ops import triton as backend

    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(9, 144, generator=g).bfloat16()
    weight = (0.2 * torch.randn(301, 144, generator=g)).bfloat16()
    targets = torch.randint(0, 301, (9,), generator=g)
    emulated = EmulatedTriton(target, conditions, rewrite=rewrite)
    options = {"scale": 0.75, "ignore_index": -100}
    found = emulated.call(backend.score, hidden, weight, targets, None, **options)
    logits = hidden.double() @ weight.double().T
    truth = definition.row_stats(RowChunk(logits, targets, None, **options))
    check_stats(found, truth, logits)


VOCABS = (300, 1300)
"""A ragged block of 512 columns, alone and after two whole ones."""


def statistics(target: str, conditions: Conditions, rewrite: Rewrite) -> None:
    for vocab in VOCABS:
        logits, targets, bias = problems.chunk(vocab, torch.float32)
        found = TritonRowKernels(target, conditions, rewrite=rewrite).row_stats(
            RowChunk(logits, targets, bias, **SETTINGS)
        )
        truth = definition.row_stats(RowChunk(logits.double(), targets, bias.double(), **SETTINGS))
        check_stats(found, truth, logits)


def gradient(target: str, conditions: Conditions, rewrite: Rewrite) -> None:
    """In the logits' own type, so that a surplus column would be padding."""
    for vocab in VOCABS:
        logits, targets, bias = problems.chunk(vocab, torch.bfloat16)
        stats = definition.row_stats(RowChunk(logits, targets, bias, **SETTINGS))
        grads = problems.grads(entropy=False, lse=False)
        wanted = definition.row_gradient_(
            RowChunk(logits.double(), targets, bias.double(), **SETTINGS),
            RowStats(*problems.doubled(stats)),
            RowGrads(*problems.doubled(grads)),
            out_dtype=torch.float64,
        )
        found = TritonRowKernels(target, conditions, rewrite=rewrite).row_gradient_(
            RowChunk(logits, targets, bias, **SETTINGS), stats, grads, out_dtype=torch.bfloat16
        )
        check_rows(found, wanted, logits, grads.logp)


def hybrid(
    target: str, conditions: Conditions, rewrite: Rewrite, dtype: torch.dtype = torch.float32
) -> None:
    """Statistics, the token's derivative, and the gradient in place, in bfloat16."""
    for vocab in VOCABS:
        logits, targets, bias = problems.chunk(vocab, dtype)
        logp = definition.row_stats(RowChunk(logits.float(), targets, bias, **SETTINGS)).logp
        table = problems.table(logp)
        truth, g, wanted = definition.hybrid_rows_(
            RowChunk(logits.double(), targets, bias.double(), **SETTINGS),
            TokenTable(*problems.doubled(table)),
            clip=None,
            out_dtype=torch.float64,
        )
        stats, found_g, found = TritonRowKernels(target, conditions, rewrite=rewrite).hybrid_rows_(
            RowChunk(logits, targets, bias, **SETTINGS), table, clip=None, out_dtype=torch.bfloat16
        )
        check_stats(stats, truth, logits)
        check_rows(found_g[:, None], g[:, None], logits, g)
        check_rows(found, wanted, logits, g)


SCENES = {
    f"{name} on {target}": Scene(kernel, target, launch)
    for target in ("sm_80", "sm_90a")
    for name, kernel, launch in (
        ("scorer", "score_spans", score),
        ("statistics", "row_stats", statistics),
        ("gradient", "row_gradient", gradient),
        ("hybrid", "hybrid_rows", hybrid),
        ("hybrid of bfloat16", "hybrid_rows", partial(hybrid, dtype=torch.bfloat16)),
    )
}
