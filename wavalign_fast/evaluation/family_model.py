"""Talks to a model of a family's directory: its prompts with sound, its answers as text and codes.

Sound of a prompt becomes codes by the codec, or vectors by the family's own encoder; see
``models/families``. Each clip is encoded once and kept on disk.
"""

from collections.abc import Sequence
from pathlib import Path

from wavalign_fast.errors import KeyedError, UserError, naming
from wavalign_fast.evaluation.answering import Parts
from wavalign_fast.evaluation.prompts import Prompt
from wavalign_fast.evaluation.talk import Talk
from wavalign_fast.models.families.checkpoint import open_family
from wavalign_fast.models.families.encoders import load_audio_encoder
from wavalign_fast.models.families.interface import AUDIO_TAG, Family
from wavalign_fast.models.families.sounds import Sounds
from wavalign_fast.models.families.vita_mtp import MtpSampler
from wavalign_fast.models.prompt_audio import PromptAudioCache
from wavalign_fast.models.two_streams import TwoStreams
from wavalign_fast.recipes.dialogue.tokens import UNLIMITED
from wavalign_fast.speech.channels import ChannelRule
from wavalign_fast.speech.code_cache import CodeCache
from wavalign_fast.speech.codec import SpeechCodec
from wavalign_fast.speech.codecs import KINDS


class FamilyModel:
    """The ids of a family's directory; see ``Speaker``.

    Args:
        rows: of the model's embedding; ids from there on name vectors.
        talk: what prompts are made of.
        codec: encodes the sound of prompts, for families that hear codes.
        cache: directory for the codes and vectors of prompts.
        mtp: answer by turns of the model and its MTP layers.

    Raises:
        UserError: the directory cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        family: Family,
        *,
        rows: int,
        talk: Talk,
        codec: SpeechCodec | None,
        cache: Path,
        mtp: bool = False,
    ) -> None:
        self.family, self.files = open_family(directory, family, talk.options)
        layout = self.files.layout
        if codec is not None and codec.codebook_size != layout.codebook_size:
            raise UserError(
                f"--codec: {codec.name} has {codec.codebook_size} codes, wanted "
                f"{layout.codebook_size}, the model's"
            )
        self.streams: TwoStreams | None = None
        self.ends = frozenset(layout.stop)
        self.pad_id = layout.stop[-1]
        self.positions = self.files.positions or UNLIMITED
        if layout.second is not None:
            self.streams = TwoStreams(layout)
            self.ends, self.pad_id = self.streams.ends, self.streams.forced
            rows, self.positions = self.streams.layout.vocab_size, 2 * self.positions
        self.mtp: MtpSampler | None = None
        if mtp:
            with naming("--mtp"):
                self.mtp = MtpSampler(family, self.files)
        self._system = talk.system or None
        self._channel: ChannelRule = "mean" if talk.channel is None else talk.channel
        self._codec = codec
        self._codes = CodeCache(cache / "codes")
        self._vectors_at = cache / "prompt_audio"
        self._sounds = Sounds(self._codes_of, self._encoder, rows, self.streams)
        self.embeddings = self._sounds.vectors

    def ids(self, prompt: Prompt) -> list[int]:
        """Returns the ids of a prompt, with those of vectors where the family wants them."""
        turns = [{"role": role, "content": content} for role, content in prompt.messages]
        if prompt.audios and not any(AUDIO_TAG in turn["content"] for turn in turns):
            # The sound is the question; its text is for people and judges.
            turns[-1]["content"] = AUDIO_TAG * len(prompt.audios)
        if self._system is not None and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self._system}, *turns]
        audios = [self._sounds.audio(path) for path in prompt.audios]
        built = self.family.prompt(self.files, turns, audios)
        return self._sounds.with_vectors(built, prompt.audios)

    def parts(self, ids: Sequence[int]) -> Parts:
        """Splits an answer."""
        both = (ids,) if self.streams is None else self.streams.apart(ids)
        answer = self.family.split(self.files, *both)
        return Parts(str(self.files.tokenizer.decode(answer.text)), list(answer.codes))

    def _codes_of(self, path: Path) -> list[int]:
        if self._codec is None:
            kind = self.family.codec(self.files)
            wanted = kind if kind in KINDS else "one that encodes as its own does"
            raise KeyedError(
                f"--codec: nothing given, and a prompt has sound ({path.name}), which "
                f"{self.family.NAME} hears as codes; wanted {wanted}, or --modality text"
            )
        return [int(code) for code in self._codes.codes(path, self._codec).codes]

    def _encoder(self) -> PromptAudioCache | None:
        try:
            encoder = load_audio_encoder(self.family, self.files)
        except UserError as error:
            raise KeyedError(f"--model: {error}") from error
        if encoder is None:
            return None
        return PromptAudioCache(encoder, self._vectors_at, channel=self._channel)
