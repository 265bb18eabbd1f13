"""Makes a codec from its kind and options, as a configuration names them."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from wavalign_fast.errors import UserError, did_you_mean, shown
from wavalign_fast.speech.channels import ChannelRule
from wavalign_fast.speech.codec import SpeechCodec

KINDS = {
    "glm4_voice": "glm4_voice.codec:Glm4VoiceCodec",
    "step_audio_2": "step_audio_2_codec:StepAudio2Codec",
    "import": "in_process:ImportCodec",
    "callable": "in_process:CallableCodec",
    "subprocess": "subprocess_codec:SubprocessCodec",
    "http": "http_codec:HttpCodec",
    "toy": "toy_codec:ToyCodec",
    "pair": "codecs:PairCodec",
}
"""The class of each kind; its arguments are the options."""


def open_codec(options: Mapping[str, Any]) -> SpeechCodec:
    """Makes a codec: ``{"kind": "glm4_voice", "tokenizer": …, "decoder": …}``.

    Raises:
        UserError: no such kind, an option that it does not have, one that is missing, or whatever
            its class finds wrong.
    """
    given = dict(options)
    kind = given.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        hint = did_you_mean(kind, KINDS) if isinstance(kind, str) else ""
        raise UserError(f"codec: kind is {shown(kind)}, wanted one of {', '.join(KINDS)}{hint}")
    module, _, name = KINDS[kind].partition(":")
    made = getattr(importlib.import_module(f"wavalign_fast.speech.{module}"), name)
    known = inspect.signature(made).parameters
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known)
            raise UserError(
                f"codec {kind}: no option {shown(key)}, wanted {', '.join(known)}{hint}"
            )
    missing = [
        key for key, value in known.items() if value.default is value.empty and key not in given
    ]
    if missing:
        raise UserError(f"codec {kind}: {', '.join(missing)} missing")
    codec: SpeechCodec = made(**given)
    return codec


def open_codec_of_channel(options: Mapping[str, Any], channel: ChannelRule) -> SpeechCodec:
    """Makes a codec that encodes ``channel``, where its options name none.

    Codes and vectors of a clip are then of the same channel, which the released code mixes up.
    """
    given = dict(options)
    if given.get("kind") != "pair":
        return open_codec({"channel": channel, **given})
    if isinstance(given.get("encode"), Mapping):
        given["encode"] = {"channel": channel, **given["encode"]}
    return open_codec(given)


class PairCodec:
    """Encodes with one codec and decodes with another, as Kimi-Audio does.

    Args:
        encode: options of the codec that encodes, or the codec.
        decode: of the one that decodes.

    Raises:
        UserError: their numbers of codes, in all or a second, differ.
    """

    def __init__(
        self,
        *,
        encode: Mapping[str, Any] | SpeechCodec,
        decode: Mapping[str, Any] | SpeechCodec,
    ) -> None:
        one, other = (
            open_codec(part) if isinstance(part, Mapping) else part for part in (encode, decode)
        )
        for key in ("codebook_size", "codes_per_second"):
            seen = getattr(one, key), getattr(other, key)
            if seen[0] != seen[1]:
                raise UserError(
                    f"codec pair: {key} of {one.name} is {seen[0]}, of {other.name} {seen[1]}, "
                    "wanted the same"
                )
        self._encoder, self._decoder = one, other
        self.name = f"{one.name} and {other.name}"
        self.identity: str = one.identity
        self.channel: ChannelRule = one.channel
        self.codebook_size, self.codes_per_second = one.codebook_size, one.codes_per_second
        self.sample_rate = other.sample_rate
        self.vita_caches: bool = getattr(one, "vita_caches", False)

    def encode(self, wave: Tensor, sample_rate: int) -> Tensor:
        """See ``SpeechCodec``."""
        return self._encoder.encode(wave, sample_rate)

    def decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """See ``SpeechCodec``."""
        return self._decoder.decode(codes)
