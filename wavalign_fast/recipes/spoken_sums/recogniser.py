"""The speech recogniser: spoken numbers with pocketsphinx and a grammar."""

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wavalign_fast.errors import UserError, described
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
"""Silence before and after: the recogniser needs some to find the start of speech."""


def recogniser_installed() -> bool:
    """Whether pocketsphinx can be imported."""
    return importlib.util.find_spec("pocketsphinx") is not None


def check_recogniser() -> None:
    """Raises ``ModuleNotFoundError`` with installation advice if pocketsphinx is missing."""
    if not recogniser_installed():
        raise ModuleNotFoundError(
            "pocketsphinx is missing and the speech cannot be judged without it: install it "
            "with `pip install pocketsphinx==5.1.1`",
            name="pocketsphinx",
        )


class Recogniser:
    """Recognises the number words in speech codes."""

    def __init__(self, centroids: np.ndarray) -> None:
        try:
            import pocketsphinx
        except (Exception, SystemExit) as error:  # missing library, build for another processor
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
        """Returns ``"the answer is forty two"``, or ``""`` if nothing was recognised.

        Only the number is judged; the words before it are always returned as the prefix.
        """
        if len(codes) < MIN_CODES:
            return ""
        pcm = (decode(codes, self.centroids) * 32767).astype(np.int16)
        # The front end keeps state between utterances. With a fresh one the result depends only on
        # the codes, not on earlier answers or on the worker.
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
    """Returns what is heard in each answer, ``None`` after a failure, and the last failure."""
    heard: list[str | None] = []
    failure = None
    for codes in answers:
        try:
            heard.append(recogniser.hear(codes))
        except Exception as error:  # no failure may become a reward
            heard.append(None)
            failure = described(error)
    return heard, failure
