"""Sends one call to the judge's server until it has scores, or cannot have them in time."""

import asyncio
import ssl
from typing import TYPE_CHECKING

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from wavalign_fast.errors import described
from wavalign_fast.redaction import HIDDEN
from wavalign_fast.rewards.judge.failures import JudgeError, MissingScoreError, PassingError
from wavalign_fast.rewards.judge.pace import Pace
from wavalign_fast.rewards.judge.replies import Reply, refuses_format, retry_after, written
from wavalign_fast.rewards.judge.reply_format import ReplyFormat
from wavalign_fast.rewards.judge.requests import Call
from wavalign_fast.rewards.judge.scores import read_scores
from wavalign_fast.rewards.judge.tally import Tally

if TYPE_CHECKING:
    from wavalign_fast.rewards.judge.options import JudgeOptions

LARGEST_REPLY = 1 << 20
"""Bytes; a judgement has a few hundred."""
NO_TLS = {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST"}
"""What OpenSSL says of a server that does not speak TLS."""


class _Deadline:
    """When a call must have its scores; its time runs from its first request on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end: float | None = None

    def left(self) -> float:
        """Returns the seconds that are left."""
        now = asyncio.get_running_loop().time()
        if self._end is None:
            self._end = now + self._seconds
        return self._end - now


class Sender:
    """Sends calls to one server. It belongs to the event loop that it is made in.

    Args:
        key: the API key. It is in no message and in no error.
    """

    def __init__(self, options: "JudgeOptions", key: str | None) -> None:
        self.options = options
        self.format = ReplyFormat(options.response_format)
        self._key = key
        self._pace = Pace(options.concurrency, options.requests_per_minute)
        headers = {"content-type": "application/json", "accept": "application/json"}
        self._client = httpx.AsyncClient(
            headers=headers if key is None else headers | {"authorization": f"Bearer {key}"},
            timeout=options.timeout_s,
            # Reading all certificates takes 50 ms, which a server of this machine does not need.
            verify=options.address.startswith("https:"),
            follow_redirects=False,  # the key and the user's data would go along
            # No connection is used twice: after an exchange that went wrong, what the server still
            # sends would pass for the reply to the next request.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def close(self) -> None:
        """Closes the client."""
        await self._client.aclose()

    async def ask(self, call: Call, tally: Tally) -> tuple[dict[str, float], str]:
        """Returns the scores of a call, and the justification.

        Raises:
            MissingScoreError: there are none, or not in time.
            JudgeError: this server cannot be asked.
        """
        deadline = _Deadline(self.options.deadline_s)

        def gives_up(state: RetryCallState) -> bool:
            last = state.attempt_number >= self.options.attempts
            return last or state.upcoming_sleep > deadline.left()

        def count(state: RetryCallState) -> None:
            tally.retried += 1

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(PassingError),
            wait=self._wait,
            stop=gives_up,
            before_sleep=count,
            reraise=True,
        )
        return await retrying(self._attempt, call, tally, deadline)

    def _wait(self, state: RetryCallState) -> float:
        """Returns what the server asks for, and a wait by full jitter so that not all come back."""
        jitter = wait_random_exponential(
            multiplier=self.options.first_wait_s, max=self.options.longest_wait_s
        )
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.after_s if isinstance(error, PassingError) else None
        return (asked or 0.0) + float(jitter(state))

    async def _attempt(
        self, call: Call, tally: Tally, deadline: _Deadline
    ) -> tuple[dict[str, float], str]:
        async with self.format.asked_by_one():
            while True:
                name = self.format.current
                reply, seconds = await self._exchange(call.body(name), deadline)
                if not (refuses_format(reply) and self.format.refused(name)):
                    break
            found = written(reply, has_audio=call.has_audio)
            self.format.worked(name)
        tally.latencies.append(seconds)
        tally.prompt_tokens += found.prompt_tokens or 0
        tally.completion_tokens += found.completion_tokens or 0
        tally.without_usage += found.prompt_tokens is None or found.completion_tokens is None
        return read_scores(found.content, call.rubric, told=call.system(name))

    async def _exchange(self, body: bytes, deadline: _Deadline) -> tuple[Reply, float]:
        """Returns the reply to one request and the seconds that it took."""
        async with self._pace.turn(deadline.left):
            limit = min(self.options.timeout_s, deadline.left())
            if limit <= 0:
                raise PassingError("timeout", f"no score within {self.options.deadline_s:g} s")
            loop = asyncio.get_running_loop()
            start = loop.time()
            try:
                # httpx's own timeout is that of one read: a server that drips never meets it.
                reply = await asyncio.wait_for(self._post(body), limit)
            except (asyncio.TimeoutError, httpx.TimeoutException) as error:
                raise PassingError("timeout", f"no whole reply within {limit:.3g} s") from error
            except httpx.DecodingError as error:
                raise PassingError("damaged", described(error)) from error
            except httpx.TransportError as error:
                if reason := _why_no_tls(error):
                    raise JudgeError(f"no TLS: {reason}") from error
                raise PassingError("connection", described(error)) from error
            seconds = loop.time() - start
        if reply.status == 429:
            self._pace.hold(retry_after(reply.headers.get("retry-after")) or 0.0)
        return reply, seconds

    async def _post(self, body: bytes) -> Reply:
        content = bytearray()
        async with self._client.stream("POST", self.options.address, content=body) as response:
            async for part in response.aiter_bytes():
                content += part
                if len(content) > LARGEST_REPLY:
                    raise MissingScoreError("too_long", f"a reply of over {LARGEST_REPLY} bytes")
        data = bytes(content)
        if self._key is not None:  # some servers quote the key in their errors
            data = data.replace(self._key.encode(), HIDDEN.encode())
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, data)


def _why_no_tls(error: BaseException) -> str | None:
    """Returns why TLS can never work with this server, ``None`` if the failure may pass."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {at.verify_message}"
        if isinstance(at, ssl.SSLError) and at.reason in NO_TLS:
            return "the server does not speak it; wanted http:// instead of https://"
        at = at.__cause__ or at.__context__
    return None
