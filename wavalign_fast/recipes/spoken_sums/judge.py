"""What was said: speech recognition over a grammar of spoken numbers, with pocketsphinx."""

import importlib.util
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from wavalign_fast.recipes.spoken_sums.decoder import MIN_CODES, decode
from wavalign_fast.recipes.spoken_sums.mel import SAMPLE_RATE
from wavalign_fast.recipes.spoken_sums.vocabulary import ANSWER_PREFIX, SMALL, TENS

GRAMMAR = f"""#JSGF V1.0;
grammar number;
<ones> = {" | ".join(SMALL[1:10])};
<tens> = {" | ".join(TENS)};
<number> = {" | ".join(SMALL)} | <tens> | <tens> <ones>;
public <answer> = [{ANSWER_PREFIX}] <number>;
"""
PADDING = np.zeros(SAMPLE_RATE // 5, dtype=np.int16)
"""Silence on both sides: the recogniser needs some to find where speech begins."""
POOL_THRESHOLD = 16
"""Fewer new answers than this are recognised here: starting workers takes longer."""


def recogniser_installed() -> bool:
    """Whether pocketsphinx can be imported."""
    return importlib.util.find_spec("pocketsphinx") is not None


def check_recogniser() -> None:
    """Raises an error that says how to install pocketsphinx where it is missing."""
    if not recogniser_installed():
        raise ModuleNotFoundError(
            "pocketsphinx is missing and the speech cannot be judged without it: install it "
            "with `pip install pocketsphinx==5.1.1`",
            name="pocketsphinx",
        )


class Recogniser:
    """Speech codes -> the number words that were heard."""

    def __init__(self, centroids: np.ndarray) -> None:
        import pocketsphinx

        self.centroids = centroids
        with tempfile.TemporaryDirectory() as directory:
            grammar = Path(directory) / "number.gram"
            grammar.write_text(GRAMMAR)
            self.decoder = pocketsphinx.Decoder(
                samprate=SAMPLE_RATE,
                jsgf=str(grammar),
                lm=None,
                beam=1e-60,
                wbeam=1e-40,
                loglevel="FATAL",
            )

    def hear(self, codes: Sequence[int]) -> str:
        """``"the answer is forty two"``, or ``""`` where nothing was understood.

        Only the number is judged: the words before it are always written as the prefix.
        """
        if len(codes) < MIN_CODES:
            return ""
        pcm = (decode(codes, self.centroids) * 32767).astype(np.int16)
        # The front end carries state from utterance to utterance: from a fresh one each time, what
        # is heard depends on the codes alone, not on what was judged before or by which worker.
        self.decoder.reinit_feat()
        self.decoder.start_utt()
        self.decoder.process_raw(np.concatenate([PADDING, pcm, PADDING]).tobytes(), full_utt=True)
        self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        if hypothesis is None:
            return ""
        return f"{ANSWER_PREFIX} {hypothesis.hypstr.replace(ANSWER_PREFIX, '').strip()}"


_worker: Recogniser | None = None


def _start_worker(centroids: np.ndarray) -> None:
    import torch

    global _worker
    torch.set_num_threads(1)
    _worker = Recogniser(centroids)


def _hear_in_worker(codes: tuple[int, ...]) -> str:
    assert _worker is not None
    return _worker.hear(codes)


class Judge:
    """Recognises many answers at once and remembers each by its codes."""

    def __init__(self, centroids: np.ndarray, *, workers: int = 2) -> None:
        self.centroids = centroids
        self.workers = workers
        self._cache: dict[tuple[int, ...], str] = {}
        self._recogniser: Recogniser | None = None

    def hear(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """The words heard in each answer's speech codes, ``""`` where none were."""
        keys = [tuple(codes) for codes in answers]
        new = [key for key in dict.fromkeys(keys) if key not in self._cache]
        if new:
            check_recogniser()
            heard = self._in_pool(new) if self._worth_a_pool(new) else self._here(new)
            self._cache.update(zip(new, heard, strict=True))
        return [self._cache[key] for key in keys]

    def _worth_a_pool(self, new: Sequence[tuple[int, ...]]) -> bool:
        return self.workers > 1 and len(new) >= POOL_THRESHOLD

    def _here(self, new: Sequence[tuple[int, ...]]) -> list[str]:
        if self._recogniser is None:
            self._recogniser = Recogniser(self.centroids)
        return [self._recogniser.hear(codes) for codes in new]

    def _in_pool(self, new: Sequence[tuple[int, ...]]) -> list[str]:
        # Spawned, not forked: forking a process that holds OpenMP threads can hang the child.
        with ProcessPoolExecutor(
            self.workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(self.centroids,),
        ) as pool:
            return list(pool.map(_hear_in_worker, new, chunksize=8))
