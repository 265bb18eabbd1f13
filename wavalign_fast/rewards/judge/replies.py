"""Reads an HTTP reply of a chat endpoint: the text of the model, or why there is none."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from wavalign_fast.errors import shorten
from wavalign_fast.rewards.judge.failures import JudgeError, MissingScoreError, PassingError

PASSING = {408, 409, 425, 429}
STOPPING = {401, 402, 403, 404, 405, 410}
NEVER_PASSING = {501, 505}
"""Statuses from 500 on that say what the server cannot do at all."""
NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
MEANS = {
    401: "the key is wrong or missing",
    402: "the account has no credit",
    403: "the key may not do this",
    404: "there is no such model, or no such address",
}
AUDIO = re.compile(r"audio|modalit", re.IGNORECASE)
FORM = re.compile(r"response_format|schema|strict|json", re.IGNORECASE)
MOST_SHOWN = 200


@dataclass(frozen=True)
class Reply:
    """One HTTP reply."""

    status: int
    headers: Mapping[str, str]
    """With names in lower case."""
    body: bytes

    @property
    def text(self) -> str:
        """The body as text, without a byte-order mark."""
        return self.body.decode("utf-8-sig", errors="replace")


@dataclass(frozen=True)
class Written:
    """What the model wrote, and the tokens that it cost, ``None`` if the reply does not say."""

    content: str
    prompt_tokens: int | None
    completion_tokens: int | None


def written(reply: Reply, *, has_audio: bool) -> Written:
    """Returns what the model wrote.

    Args:
        has_audio: whether the request had sound in it.

    Raises:
        PassingError, MissingScoreError, JudgeError: there is no usable text; see docs/judge.md.
    """
    if reply.status != 200:
        _raise_for(reply.status, _error_of(_json(reply)), reply, has_audio=has_audio)
    is_stream = reply.headers.get("content-type", "").startswith("text/event-stream")
    if is_stream or reply.text.startswith("data:"):
        answer: Any = _of_events(reply.text)
    else:
        answer = _json(reply)
    if not isinstance(answer, dict):
        raise PassingError("not_json", f"status 200 with {_start(reply)}")
    if answer.get("error"):
        error = _error_of(answer)
        code = error.get("code")
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
        _raise_for(status, error, reply, has_audio=has_audio)
    return _of_choice(answer, reply)


def refuses_format(reply: Reply) -> bool:
    """Whether a reply may mean that the server does not know the ``response_format``."""
    if reply.status not in (400, 422):
        return False
    said = _message(_error_of(_json(reply)), reply)
    # The name of a model may have "audio" in it.
    return FORM.search(said) is not None or AUDIO.search(said) is None


def _of_choice(answer: Mapping[str, Any], reply: Reply) -> Written:
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise PassingError("empty", f"no choice in {_start(reply)}")
    reason = choice.get("finish_reason")
    if message.get("refusal") or reason == "content_filter":
        said = message.get("refusal") or "finish_reason content_filter"
        raise MissingScoreError("refused", shorten(str(said), MOST_SHOWN))
    if reason == "length":
        raise MissingScoreError("cut_off", "finish_reason length; wanted more max_tokens")
    content = _joined(message.get("content"))
    if not content.strip():
        raise PassingError("empty", "the message has no content")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Written(content, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))


def _joined(content: Any) -> str:
    """Returns a message's content as text; some servers send it in parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) and value >= 0 else None


def _of_events(text: str) -> Any:
    """Puts a stream of events together, which some servers send unasked.

    Raises:
        PassingError: the stream ends before its ``[DONE]`` and without a ``finish_reason``.
    """
    content: list[str] = []
    message: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    reason = None
    for line in text.splitlines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        try:
            event = json.loads(data)
        except ValueError as error:
            raise PassingError("not_json", f"a stream with {shorten(data)}") from error
        if not isinstance(event, dict) or event.get("error"):
            return event
        merged |= {key: value for key, value in event.items() if key == "usage" and value}
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or choice.get("message") or {}
            content.append(_joined(delta.get("content")))
            message |= {"refusal": delta["refusal"]} if delta.get("refusal") else {}
            reason = choice.get("finish_reason") or reason
    if reason is None and "[DONE]" not in text:
        raise PassingError("damaged", "a stream that ends too early")
    message["content"] = "".join(content)
    return merged | {"choices": [{"message": message, "finish_reason": reason}]}


def _raise_for(status: int, error: Mapping[str, Any], reply: Reply, *, has_audio: bool) -> None:
    """Raises what a status that is not 200 means."""
    said = _message(error, reply)
    detail = f"status {status}: {said}"
    if 300 <= status < 400:
        target = reply.headers.get("location", "elsewhere").partition("?")[0]
        raise JudgeError(f"status {status} leads to {shorten(target, 100)}; wanted that as url")
    if str(error.get("code")) in NO_MONEY or str(error.get("type")) in NO_MONEY:
        raise JudgeError(f"the account has no credit left: {detail}")
    if status in STOPPING:
        raise JudgeError(f"{MEANS.get(status, 'it does not take such requests')}: {detail}")
    if status in PASSING or (status >= 500 and status not in NEVER_PASSING):
        cause = {429: "rate_limit", 408: "timeout"}.get(status, "server")
        raise PassingError(cause, detail, retry_after(reply.headers.get("retry-after")))
    if status == 413:
        raise MissingScoreError("too_large", detail)
    if AUDIO.search(said):
        raise MissingScoreError("audio_refused" if has_audio else "no_audio", detail)
    raise MissingScoreError("bad_request", detail)


def retry_after(value: str | None) -> float | None:
    """Returns the seconds of a ``Retry-After`` header, which has a number or a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=timezone.utc)
        seconds = (date - datetime.now(timezone.utc)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _json(reply: Reply) -> Any:
    try:
        return json.loads(reply.text)
    except (ValueError, RecursionError):
        return None


def _error_of(answer: Any) -> Mapping[str, Any]:
    error = answer.get("error") if isinstance(answer, dict) else None
    return error if isinstance(error, dict) else {"message": error} if error else {}


def _message(error: Mapping[str, Any], reply: Reply) -> str:
    message = error.get("message")
    return shorten(" ".join(str(message).split()), MOST_SHOWN) if message else _start(reply)


def _start(reply: Reply) -> str:
    start = " ".join(reply.text[: 4 * MOST_SHOWN].split())
    return shorten(start, MOST_SHOWN) or "an empty body"
