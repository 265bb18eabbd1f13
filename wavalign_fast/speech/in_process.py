"""Codecs of the user's own Python code in this process: a factory by name, or two functions."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from wavalign_fast.speech.channels import ChannelRule
from wavalign_fast.speech.codec import CodecError
from wavalign_fast.speech.foreign import CodecFacts, ForeignCodec
from wavalign_fast.speech.foreign_code import facts, find
from wavalign_fast.speech.random_state import forked_random_state


class _InProcess(ForeignCodec):
    """Calls functions of this process, with random numbers of their own."""

    def __init__(self, name: str, *, seed: int, **options: Any) -> None:
        super().__init__(name, **options)
        self._seed = seed
        self._encode: Callable[..., Any] | None = None
        self._decode: Callable[..., Any] | None = None
        self._facts: CodecFacts

    @property
    def facts(self) -> CodecFacts:
        """As given, or as the codec says."""
        return self._facts

    def _forked(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        with forked_random_state(self._seed):
            return self._run(what, function, *args)

    def _encoded(self, wave: Tensor, sample_rate: int) -> Any:
        if self._encode is None:
            raise CodecError(f"{self.name}: cannot encode: it has no encode")
        return self._forked("encode failed", self._encode, wave, sample_rate)

    def _decoded(self, codes: list[Tensor]) -> Any:
        if self._decode is None:
            raise CodecError(f"{self.name}: cannot decode: it has no decode")
        return self._forked("decode failed", self._decode, codes)

    def _take_facts(self, codec: Any, given: Mapping[str, Any]) -> None:
        self._facts = CodecFacts(**self._run("cannot be used", facts, codec, dict(given)))
        self._facts.check(self.name)


class ImportCodec(_InProcess):
    """A codec that a function of the user's makes: a clone of a family's code, for example.

    The factory returns an object with ``encode(wave, sample_rate)`` and ``decode(codes)`` as in
    ``SpeechCodec``; one may be missing. It gets float32 [N] of one channel. Its results may be
    tensors, arrays or lists.

    Args:
        factory: ``MODULE:FUNCTION``, called with ``arguments``.
        paths: folders to import from besides, the user's clone.
        arguments: keyword arguments of the factory.
        codebook_size, codes_per_second, sample_rate: where the object has no such attribute.
        channel: which channel to encode.
        seed: of random numbers at every call.
        batch_size: see ``ForeignCodec``.
        version: told apart by caches; change it when the codec's weights change.

    Raises:
        CodecError: the factory cannot be imported or fails, or facts are missing.
    """

    def __init__(
        self,
        *,
        factory: str,
        paths: Sequence[str] = (),
        arguments: Mapping[str, Any] | None = None,
        codebook_size: int | None = None,
        codes_per_second: float | None = None,
        sample_rate: int | None = None,
        channel: ChannelRule = "mean",
        seed: int = 0,
        batch_size: int = 1,
        version: str = "",
    ) -> None:
        identity = json.dumps(["import", factory, arguments or {}, version], sort_keys=True)
        super().__init__(
            f"import {factory}",
            seed=seed,
            identity=identity,
            channel=channel,
            batch_size=batch_size,
        )
        make = self._forked("cannot be imported", find, factory, paths)
        codec = self._forked("the factory failed", lambda: make(**(arguments or {})))
        self._encode, self._decode = (getattr(codec, name, None) for name in ("encode", "decode"))
        given = {"codebook_size": codebook_size, "codes_per_second": codes_per_second}
        self._take_facts(codec, {**given, "sample_rate": sample_rate})


class CallableCodec(_InProcess):
    """A codec of two functions.

    Args:
        encode: ``encode(wave, sample_rate)``, a callable or ``MODULE:FUNCTION``; may be missing.
        decode: ``decode(codes)`` with a list of int64 [T], likewise.
        codebook_size: number of codes.
        codes_per_second: of a wave.
        sample_rate: of decoded waves, in Hz.
        paths, channel, seed, batch_size, version: as in ``ImportCodec``.

    Raises:
        CodecError: a function cannot be imported, or both are missing.
    """

    def __init__(
        self,
        *,
        encode: Callable[[Tensor, int], Any] | str | None = None,
        decode: Callable[[list[Tensor]], Any] | str | None = None,
        codebook_size: int,
        codes_per_second: float,
        sample_rate: int,
        paths: Sequence[str] = (),
        channel: ChannelRule = "mean",
        seed: int = 0,
        batch_size: int = 1,
        version: str = "",
    ) -> None:
        names = [_called(function) for function in (encode, decode) if function is not None]
        identity = json.dumps(["callable", _called(encode) if encode else None, version])
        super().__init__(
            f"callable {', '.join(names)}",
            seed=seed,
            identity=identity,
            channel=channel,
            batch_size=batch_size,
        )
        if not names:
            raise CodecError("callable: neither encode nor decode given")
        self._encode, self._decode = (
            self._forked("cannot be imported", find, function, paths)
            if isinstance(function, str)
            else function
            for function in (encode, decode)
        )
        given = {"codebook_size": codebook_size, "codes_per_second": codes_per_second}
        self._take_facts(None, {**given, "sample_rate": sample_rate})


def _called(function: Any) -> str:
    if isinstance(function, str):
        return function
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '?')}:{name}"
