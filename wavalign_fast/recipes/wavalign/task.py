"""``WavAlign``: a task of a family's checkpoint, spoken dialogues, a codec and a judge."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_fast.data.dialogues.records import AUDIO_TAG, Dialogue, Message, Place
from wavalign_fast.data.records import (
    Completion,
    Evaluation,
    Example,
    SpokenSample,
)
from wavalign_fast.errors import KeyedError, UserError, naming
from wavalign_fast.models.families.encoders import load_audio_encoder
from wavalign_fast.models.families.sounds import Sounds
from wavalign_fast.models.families.vita_mtp import MtpHead, open_mtp
from wavalign_fast.models.prompt_audio import PromptAudioCache
from wavalign_fast.recipes.answers import answer_metrics, reward_metrics
from wavalign_fast.recipes.own_model import OwnModelTask, from_run
from wavalign_fast.recipes.wavalign.answers import Listener, SpokenAnswer
from wavalign_fast.recipes.wavalign.options import Options, Paths
from wavalign_fast.recipes.wavalign.read import DialogueReader
from wavalign_fast.recipes.wavalign.speech import Speech, codec_of
from wavalign_fast.recipes.wavalign.tokens import FamilyTokens
from wavalign_fast.rewards.build import build_rewards
from wavalign_fast.rewards.combined import CombinedPending, CombinedReward
from wavalign_fast.rewards.options import JudgePart, read_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

SOUND_FILES = (".wav", ".mp3", ".flac", ".ogg")
NUM_SAMPLES = 8
"""Answers of an evaluation that are kept with their sound."""


class WavAlign(OwnModelTask):
    """Spoken answers to spoken dialogues; keywords are ``FROM_RUN`` and the fields of ``Options``.

    Raises:
        UserError: a value of the options cannot be used, or one is missing.
    """

    def __init__(self, *, scale: tuple[float, float], **given: Any) -> None:
        run, options = from_run(given)
        self.options = Options(**options)
        super().__init__(self.options, run)
        parts = read_parts(self.options.rewards or (), self.options.judge)
        if run.needs_rewards and not parts:
            raise UserError(
                "task.rewards: nothing given, wanted rewards, or task.judge.url, the address of a "
                "judge"
            )
        self.tokens: FamilyTokens = FamilyTokens(self.directory, self.options)
        self.layout = self.tokens.layout
        self.pad_id = self.tokens.pad_id
        self.eos_id = self.tokens.ends
        cache = Path(self.options.cache)
        with naming("task.codec"):
            codec = codec_of(
                self.options.codec,
                self.tokens.family.codec(self.tokens.files),
                self.options.channel,
            )
            self.speech = Speech(codec, cache)
            self.speech.check_codebook(self.tokens.files.layout.codebook_size)
        self.streams = self.tokens.streams
        self.sounds = Sounds(
            self.speech.codes, self._prompt_audio, self.layout.vocab_size, self.streams
        )
        self.prompt_embeddings = self.sounds.vectors
        self._reader = DialogueReader(
            self.tokens, self.sounds, self.options, max_new_tokens=run.max_new_tokens
        )
        self._listener = Listener(self.tokens, self.speech)
        self._rewards: CombinedReward | None = None
        judge = self.options.judge
        self._must_speak = judge.audio != "none" and judge.text_model is None
        self._must_speak &= any(isinstance(part, JudgePart) for part in parts)
        self.reward_scale = "nobody is asked"
        if parts:
            self._rewards = build_rewards(parts, self.options.judge, scale=scale)
            self.reward_scale = self._rewards.description

    def _prompt_audio(self) -> PromptAudioCache | None:
        """Loads the family's encoder of prompt audio, if it has one.

        Raises:
            KeyedError: it is damaged, which is no fault of the clip that wants it.
        """
        try:
            encoder = load_audio_encoder(self.tokens.family, self.tokens.files)
        except UserError as error:
            raise KeyedError(f"model.path: {error}") from error
        if encoder is None:
            return None
        place = Path(self.options.cache) / "vectors"
        return PromptAudioCache(encoder, place, channel=self.options.channel)

    def _read(self, data: Paths) -> tuple[Example, ...]:
        """Reads dialogues; clips that are not in the cache are encoded."""
        return self._reader.read(data)

    def load_mtp(self, model: "PreTrainedModel") -> MtpHead:
        """Loads the MTP layers of ``model.path``, beside the model."""
        return open_mtp(self.tokens.family, self.tokens.files, model)

    def rewards(self, completions: Sequence[Completion]) -> list[float | None]:
        """Returns the combined rewards, ``None`` for a missing one."""
        return self.start_rewards(completions).result()

    def start_rewards(self, completions: Sequence[Completion]) -> CombinedPending:
        """Decodes the answers and starts their rewards; returns before a judge has answered."""
        return self._started(self._listener(completions))

    def _started(self, answers: Sequence[SpokenAnswer]) -> CombinedPending:
        assert self._rewards is not None  # checked at the start
        return self._rewards.start([answer.described for answer in answers])

    def judge_evaluation(self, answers: Sequence[Completion]) -> Evaluation:
        """Hears and rewards the answers; those without speech or words are counted too.

        Their shares are ``speaks`` and ``writes``. Those without speech that the judge should hear
        have the lowest reward.
        """
        heard, items = self._listener(answers), len(answers)
        metrics = self._lengths(heard) | {
            "speaks": sum(bool(one.parts.codes) for one in heard) / items,
            "writes": sum(bool(one.text) for one in heard) / items,
        }
        given: list[float | None] = [None] * items
        if self._rewards is not None:
            given = self._evaluated(heard)
            metrics = reward_metrics(given) | metrics
        return Evaluation(
            metrics=metrics | {"items": float(items)},
            samples=[
                _shown(answer, reward)
                for answer, reward in zip(heard[:NUM_SAMPLES], given[:NUM_SAMPLES], strict=True)
            ],
        )

    def _evaluated(self, answers: Sequence[SpokenAnswer]) -> list[float | None]:
        """Returns the rewards of an evaluation.

        Where the judge hears answers, one in which the model says no speech has failed: the lowest
        reward. That tells of the model, so that nobody is asked, and no judgement is missing.
        """
        assert self._rewards is not None
        failed = [self._must_speak and not one.parts.codes for one in answers]
        if any(failed):
            logger.warning(
                "evaluation: %d of %d answers have no speech: they have failed, with the lowest "
                "reward, %g",
                sum(failed),
                len(answers),
                self._rewards.low,
            )
        asked = [one for one, lost in zip(answers, failed, strict=True) if not lost]
        rewards = iter(self._started(asked).result() if asked else [])
        return [self._rewards.low if lost else next(rewards) for lost in failed]

    def answer(self, model: "PreTrainedModel", prompt: str, *, seed: int) -> Evaluation:
        """Answers a prompt: a question as text, or the path of a sound file."""
        audios = (Path(prompt),) if prompt.lower().endswith(SOUND_FILES) else ()
        content = AUDIO_TAG if audios else prompt
        messages = [Message("user", content)]
        if self.options.system is not None:
            messages.insert(0, Message("system", self.options.system))
        example = self._reader.example(
            Dialogue(
                place=Place("say"),
                id="say",
                messages=tuple(messages),
                audios=audios,
                task_type="s2s",
                question_text=prompt,
            )
        )
        done = self._sampled(model, [example], rows=1, seed=seed)
        (answer,) = self._listener(done)
        return Evaluation(metrics=self._lengths([answer]), samples=[_shown(answer, None)])

    def _lengths(self, answers: Sequence[SpokenAnswer]) -> dict[str, float]:
        metrics = answer_metrics([answer.done for answer in answers], self.tokens)
        if self.streams is not None:  # what is neither code nor mark may be a forced id there
            metrics["text_length"] = sum(len(one.parts.text) for one in answers) / len(answers)
        return metrics


def _shown(answer: SpokenAnswer, reward: float | None) -> SpokenSample:
    return SpokenSample(
        prompt=answer.done.example.prompt,
        reference=answer.done.example.reference,
        text=answer.text,
        waveform=None if answer.wave is None else answer.wave.numpy(),
        sample_rate=answer.sample_rate,
        reward=reward,
    )


TASK = WavAlign
