"""A judge on this machine that answers as it is told, also with what no server should send.

``LoopbackJudge`` is an HTTP server in a thread. Each request gets the next of its behaviours, and
what comes after them the last one. A behaviour is an async function of the request and the
connection; the functions of this file make them.
"""

import asyncio
import gzip
import html
import json
import re
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

REASON = {200: "OK", 429: "Too Many Requests", 500: "Internal Server Error"}


@dataclass(frozen=True)
class Asked:
    """One request that the server got."""

    number: int
    """Counts from 0."""
    path: str
    headers: dict[str, str]
    body: dict

    @property
    def system(self) -> str:
        return self.body["messages"][0]["content"]

    @property
    def parts(self) -> list[dict]:
        """The parts of the user's message."""
        content = self.body["messages"][1]["content"]
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    @property
    def transcript(self) -> str:
        """The transcript as the judge's model would understand it."""
        found = re.search("<transcript>(.*)</transcript>", self.parts[0]["text"], re.DOTALL)
        return html.unescape(found[1])

    @property
    def format(self) -> str:
        return self.body.get("response_format", {}).get("type", "tags")


Behaviour = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


def message(content, *, usage=(412, 61), finish="stop", **more) -> dict:
    """A chat completion with this content of the assistant."""
    answer = {"role": "assistant", "content": content, **more}
    made = {"id": "x", "choices": [{"index": 0, "finish_reason": finish, "message": answer}]}
    if usage is not None:
        made["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
    return made


def judgement(score=4, justification="Fits.", **axes) -> str:
    """The content of a good reply, as JSON."""
    return json.dumps({"justification": justification, **(axes or {"score": score})})


def http(status: int, body: bytes, headers: dict | None = None, *, length: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status} {REASON.get(status, 'X')}", "connection: close"]
    lines += [f"content-length: {len(body)}"] if length else []
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def sends(status: int, body=b"", headers: dict | None = None) -> Behaviour:
    """Answers with a status and a body: bytes, or what becomes JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return raw(http(status, content, headers))


def says(content, **more) -> Behaviour:
    """Answers with a chat completion."""
    return sends(200, message(content, **more))


def scores(score=4, **axes) -> Behaviour:
    """Answers as a good judge does, in the format that was asked for."""
    values = axes or {"score": score}
    tags = {"score": "score", "semantic": "score-semantic", "acoustic": "score-paralinguistic"}

    async def answer(asked, writer):
        content = judgement(**values)
        if asked.format == "tags":
            content = "<justification>Fits.</justification> " + " ".join(
                f"<{tags[axis]}>{value}</{tags[axis]}>" for axis, value in values.items()
            )
        await says(content)(asked, writer)

    return answer


def fails(status: int, text: str = "no", headers: dict | None = None, **error) -> Behaviour:
    """Answers with an error as OpenAI's servers write it."""
    return sends(status, {"error": {"message": text, **error}}, headers)


def takes_only(*formats: str, text: str = "response_format is not supported") -> Behaviour:
    """Refuses requests for another format with status 400."""
    good, bad = scores(), fails(400, text)

    async def answer(asked, writer):
        await (good if asked.format in formats else bad)(asked, writer)

    return answer


def raw(data: bytes) -> Behaviour:
    """Sends these bytes and ends the connection."""

    async def answer(asked, writer):
        writer.write(data)
        await writer.drain()

    return answer


async def hangs(asked, writer):
    """Never answers."""
    await asyncio.sleep(60)


async def resets(asked, writer):
    """Resets the connection in the middle of the body."""
    whole = http(200, json.dumps(message(judgement())).encode())
    writer.write(whole[:-20])
    await writer.drain()
    await asyncio.sleep(0.02)
    writer.transport.abort()


async def drips(asked, writer):
    """Sends a byte at a time, each in time and all together never."""
    for byte in http(200, json.dumps(message(judgement())).encode()):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


def streams(*pieces: str, done: bool = True) -> Behaviour:
    """Sends events in chunks, although nobody asked for a stream."""
    events = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    if done:
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"] * done
    chunks = "".join(f"{len(line.encode()):x}\r\n{line}\r\n" for line in lines) + "0\r\n\r\n"
    headers = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
    return raw(http(200, chunks.encode(), headers, length=False))


def zipped(body: dict) -> Behaviour:
    return sends(200, gzip.compress(json.dumps(body).encode()), {"content-encoding": "gzip"})


class LoopbackJudge:
    """The server; ``asked`` is what it got so far. Use it as a context.

    Args:
        behaviours: of the first, second, … request; the last one also of all that follow.
    """

    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours = behaviours or (scores(),)
        self.asked: list[Asked] = []
        self.at_once = 0
        self.most_at_once = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "LoopbackJudge":
        self._thread.start()
        opening = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(opening, self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(self, *failure) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = await reader.readexactly(1)
            if first == b"\x16":  # the first byte of TLS, which it does not speak
                writer.write(http(400, b"plain HTTP, please"))
                return
            head = (first + await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            pairs = [line.split(": ", 1) for line in head[1:-2]]
            headers = {name.lower(): value for name, value in pairs}
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            asked = Asked(len(self.asked), head[0].split()[1], headers, body)
            self.asked.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                await self.behaviours[min(asked.number, len(self.behaviours) - 1)](asked, writer)
            finally:
                self.at_once -= 1
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
