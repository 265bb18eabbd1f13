"""What was said: speech recognition over a grammar of spoken numbers, with pocketsphinx."""

import importlib.util
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wavalign_fast.errors import UserError, described
from wavalign_fast.recipes.spoken_sums.decoder import MIN_CODES, decode
from wavalign_fast.recipes.spoken_sums.judge_workers import hear_in_workers
from wavalign_fast.recipes.spoken_sums.mel import SAMPLE_RATE
from wavalign_fast.recipes.spoken_sums.vocabulary import ANSWER_PREFIX, SMALL, TENS

logger = logging.getLogger(__name__)

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
        try:
            import pocketsphinx
        except (Exception, SystemExit) as error:  # a missing library, another processor's build
            raise UserError(f"pocketsphinx cannot be imported: {described(error)}") from error
        self.centroids = centroids
        with tempfile.TemporaryDirectory() as directory:
            grammar = Path(directory) / "number.gram"
            grammar.write_text(GRAMMAR, encoding="utf-8")
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


def hear_each(
    recogniser: Recogniser, answers: Sequence[Sequence[int]]
) -> tuple[list[str | None], str | None]:
    """(What is heard in each answer, ``None`` where that failed; the last failure)."""
    heard: list[str | None] = []
    failure = None
    for codes in answers:
        try:
            heard.append(recogniser.hear(codes))
        except Exception as error:  # whatever it is, it must not become a reward
            heard.append(None)
            failure = described(error)
    return heard, failure


class Judge:
    """Recognises many answers at once and remembers each by its codes."""

    def __init__(self, centroids: np.ndarray, *, workers: int = 2) -> None:
        self.centroids = centroids
        self.workers = workers
        self._cache: dict[tuple[int, ...], str] = {}
        self._recogniser: Recogniser | None = None

    def hear(self, answers: Sequence[Sequence[int]]) -> list[str | None]:
        """The words heard in each answer's speech codes, ``""`` where none were.

        ``None`` where the judge failed, which is logged; such an answer is tried again when it
        comes again.

        Raises:
            UserError: where no answer can be judged: the recogniser cannot be loaded, or no worker
                started.
            ModuleNotFoundError: where pocketsphinx is not installed.
        """
        keys = [tuple(map(int, codes)) for codes in answers]
        new = [key for key in dict.fromkeys(keys) if key not in self._cache]
        if new:
            self._judge(new)
        return [self._cache.get(key) for key in keys]

    def _judge(self, new: Sequence[tuple[int, ...]]) -> None:
        check_recogniser()
        if self.workers > 1 and len(new) >= POOL_THRESHOLD:
            heard, failures = hear_in_workers(new, self.centroids, self.workers)
        else:
            if self._recogniser is None:
                self._recogniser = Recogniser(self.centroids)
            heard, failure = hear_each(self._recogniser, new)
            failures = [failure] if failure else []
        if failures:
            logger.warning(
                "the judge failed on %d of %d answers: %s",
                heard.count(None),
                len(new),
                "; ".join(dict.fromkeys(failures)),
            )
        for key, words in zip(new, heard, strict=True):
            if words is not None:
                self._cache[key] = words
