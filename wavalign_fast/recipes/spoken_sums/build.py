"""Builds every file that ships with the recipe, from flite's recordings to the base model."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from wavalign_fast.recipes.spoken_sums.assets import load_speech_assets, save_speech_assets
from wavalign_fast.recipes.spoken_sums.base_model import PHASES, Phase, save_base, train_base
from wavalign_fast.recipes.spoken_sums.data import built_in_split
from wavalign_fast.recipes.spoken_sums.synthesis import build_speech_assets


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Runs torch on one thread, because sums over several threads are not reproducible."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def build_recipe(
    output_dir: str | Path,
    *,
    seed: int = 0,
    phases: Sequence[Phase] = PHASES,
    progress: Callable[[str], None] = print,
) -> None:
    """Writes the codebook, the codes of the recordings and the base model to ``output_dir``.

    Needs flite and scikit-learn, and takes minutes on one core. The same seed gives the same files
    on the same machine with the same library versions.
    """
    directory, start = Path(output_dir), time.monotonic()

    def report(message: str) -> None:
        progress(f"[{time.monotonic() - start:4.0f} s] {message}")

    with _one_thread():
        report("reading the answers aloud and fitting the codebook")
        save_speech_assets(directory, build_speech_assets(seed))
        load_speech_assets.cache_clear()
        assets = load_speech_assets(directory)
        examples, _ = built_in_split()
        model = train_base(examples, assets, seed=seed, phases=phases, progress=report)
        save_base(model, directory / "base")
    report(f"wrote {directory}")
