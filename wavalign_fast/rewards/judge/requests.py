"""What is judged, and the messages that carry it."""

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wavalign_fast.rewards.judge.rubrics import Rubric

NO_QUESTION = "[the question was spoken]"
NO_TRANSCRIPT = "[empty]"


@dataclass(frozen=True)
class JudgeRequest:
    """One reply to be judged. The judge sees neither a reference nor another reply."""

    question: str
    """What the user asked, as text; empty if it is not known as text."""
    transcript: str
    """What the reply says."""
    wav: bytes | None = None
    """The reply's sound, the bytes of a WAV file; ``None`` if it has none."""


@dataclass(frozen=True)
class Call:
    """One score to be asked for: a request, a rubric, and which of several samples it is."""

    request: JudgeRequest
    rubric: Rubric
    model: str
    audio: str
    """``input_audio``, ``audio_url`` or ``none``."""
    settings: Mapping[str, Any]
    """Further keys of the body."""
    sample: int = 0

    @property
    def has_audio(self) -> bool:
        """Whether sound is sent."""
        return self.audio != "none" and self.request.wav is not None

    def system(self, reply_format: str) -> str:
        """Returns the system message."""
        return self.rubric.system(reply_format)

    def body(self, reply_format: str) -> bytes:
        """Returns the body of the HTTP request, for a format of ``rubrics.FORMATS``."""
        content: list[dict[str, Any]] = [{"type": "text", "text": self._text}]
        if self.has_audio:
            content.append(self._audio_part)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": self.system(reply_format)},
                # Judges of text alone often take no parts.
                {"role": "user", "content": content if self.has_audio else self._text},
            ],
            "response_format": self.rubric.response_format(reply_format),
            **self.settings,
        }
        return json.dumps({key: value for key, value in body.items() if value is not None}).encode()

    def key(self, address: str) -> str:
        """Returns the name under which the scores are cached: a hash of all that they depend on."""
        sound = self.request.wav if self.has_audio else None
        parts = {
            "address": address,
            "model": self.model,
            "rubric": self.rubric.text,
            "axes": self.rubric.axes,
            "range": (self.rubric.low, self.rubric.high),
            "text": self._text,
            "sound": None if sound is None else hashlib.sha256(sound).hexdigest(),
            "settings": dict(self.settings),
            "sample": self.sample,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def _text(self) -> str:
        question = _as_data(self.request.question) or NO_QUESTION
        transcript = _as_data(self.request.transcript) or NO_TRANSCRIPT
        return f"<question>{question}</question>\n<transcript>{transcript}</transcript>"

    @functools.cached_property
    def _audio_part(self) -> dict[str, Any]:
        data = base64.b64encode(self.request.wav or b"").decode()
        if self.audio == "input_audio":
            return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        return {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}


def _as_data(text: str) -> str:
    """Escapes what could end the element that the text is in, or look like a score."""
    return text.strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
