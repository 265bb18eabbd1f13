"""The options of a judge, ``task.judge`` in a config. They are known without importing torch."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import Self

from wavalign_fast.config.group import AtLeastOne, Group, Positive, Weight
from wavalign_fast.redaction import is_secret

SUFFIX = "/chat/completions"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

Seconds = Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)]
OwnPath = Annotated[
    Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)
]


class JudgeOptions(Group):
    """A judge behind an OpenAI-style chat endpoint. Without ``url`` there is none."""

    model_config = ConfigDict(hide_input_in_errors=True)  # which may have a key in it

    url: str | None = None
    """Address of the server up to /v1, or that of its chat/completions. Keys do not belong here."""
    model: str = ""
    """The model's name on the server."""
    key_variable: str | None = None
    """Environment variable that has the API key. null: OPENAI_API_KEY if it is set, else no key."""
    mode: Literal["holistic", "two_scores", "two_requests"] = "holistic"
    """One score for all; or a semantic and an acoustic one, by one request or by two."""
    semantic_weight: Weight = 0.7
    """Weight of the semantic score, if there are two."""
    acoustic_weight: Weight = 0.3
    """Weight of the acoustic score, if there are two."""
    rubric: OwnPath | None = None
    """Text file with a rubric of yours; the form of the reply is added. null: our own."""
    audio: Literal["input_audio", "audio_url", "none"] = "input_audio"
    """How sound is sent: as base64 data, as a data URL, or not at all."""
    text_model: str | None = None
    """Model that judges replies without sound. null: their scores are missing (no_audio)."""
    response_format: Literal["auto", "json_schema", "json_object", "tags"] = "auto"
    """How scores are asked for. auto: the first of the others that the server takes."""
    samples: Annotated[int, Field(ge=1, le=101)] = 1
    """Judgements of each reply; the median of a score counts."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] = 0.0
    """Sampling temperature of the judge."""
    max_tokens: AtLeastOne = 400
    """Most tokens of a judgement, its justification included."""
    body: dict[str, Any] = Field(default={})
    """Further keys of each request's body, e.g. {seed: 1}; null takes a key out."""
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 32
    """Most requests at once, for each rank."""
    requests_per_minute: Positive | None = None
    """Most requests that are started in a minute, for each rank. null: no limit."""
    timeout_s: Seconds = 60.0
    """Seconds that one HTTP exchange may take."""
    deadline_s: Seconds = 180.0
    """Seconds that one judgement may take, from its first request on, with all that follow."""
    group_deadline_s: Seconds = 600.0
    """Seconds that all judgements of a step may take."""
    attempts: Annotated[int, Field(ge=1, le=1000)] = 8
    """Most requests for one judgement."""
    first_wait_s: Seconds = 1.0
    """Longest wait before the second request; doubles each time. Waits are drawn from 0 to it."""
    longest_wait_s: Seconds = 30.0
    """Where that doubling ends."""
    max_missing: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)] = 0.5
    """Share of missing scores above which the run stops, over a step or the last 64."""
    cache: OwnPath | None = None
    """Directory that keeps judgements; null keeps none."""
    price_in: Weight = 0.0
    """Price of a million tokens that the judge reads."""
    price_out: Weight = 0.0
    """Price of a million tokens that it writes."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.url is None:
            return self
        _check_address(self.url)
        if not self.model:
            raise ValueError("model: nothing given, wanted the name of a model")
        if self.key_variable is not None and not VARIABLE.fullmatch(self.key_variable):
            # Not shown: it may be a key.
            raise ValueError("key_variable: no name of a variable given, wanted one")
        if self.mode != "holistic" and self.semantic_weight + self.acoustic_weight == 0:
            raise ValueError("semantic_weight, acoustic_weight: both 0, wanted one above 0")
        if self.mode == "two_requests" and self.rubric is not None:
            raise ValueError("rubric: a file given with mode two_requests, wanted two_scores")
        return self

    @property
    def address(self) -> str:
        """Where requests are sent."""
        parts = urlsplit(self.url or "")
        path = parts.path.rstrip("/")
        path = path if path.endswith(SUFFIX) else path + SUFFIX
        return parts._replace(path=path).geturl()


NO_JUDGE = JudgeOptions()
"""The default of an option of a recipe."""


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port  # raises for one that is no number
    except ValueError as error:
        raise ValueError("url: no address given, wanted e.g. https://HOST/v1") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"url: scheme {parts.scheme!r} given, wanted http://HOST/v1 or https://…")
    if (
        parts.username
        or parts.password
        or any(is_secret(name) for name, _ in parse_qsl(parts.query))
    ):
        raise ValueError(
            "url: has a key or a password in it, wanted that in key_variable's variable"
        )
