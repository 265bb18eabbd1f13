"""vLLM as a rollout engine over HTTP; ``vllm_in_process.py`` has one in this process.

Token ids go in, and ids, their log-probs and the version of the weights of each id come out.
Weights go through files: pause, reload, version, reset of the prefix cache, resume. Sources: the
routes of vLLM 0.32, ``/inference/v1/generate`` and those of ``VLLM_SERVER_DEV_MODE=1``;
``make test-vllm`` runs them.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from wavalign_fast.errors import UserError, described, shorten, shown
from wavalign_fast.rollout.server_process import ServerProcess
from wavalign_fast.rollout.token_answers import Choice, EngineError

logger = logging.getLogger(__name__)

T = TypeVar("T")
TESTED = "0.32."
"""Releases that the tests ran with. The routes changed between earlier ones."""
HEALTH_S = 5.0
"""Seconds to wait for the answer of a server that has just failed."""
POLL_S = 0.5


class VLLM(Protocol):
    """A vLLM, which the first ``load`` starts or waits for."""

    def load(self, directory: Path, label: str) -> None:
        """Loads the weights in ``directory`` and calls them ``label``."""
        ...

    def version(self) -> str:
        """Returns the release of vLLM."""
        ...

    def generate(self, requests: Sequence[dict[str, Any]]) -> list[list[Choice]]:
        """Returns the choices of each request, a body of ``/inference/v1/generate``."""
        ...

    def close(self) -> None:
        """Ends what this object has started."""
        ...


class VLLMServer:
    """A server: one that somebody has started, or that the first ``load`` starts.

    Args:
        url: its address, such as ``http://127.0.0.1:8000``.
        timeout_s: seconds that an update of the weights or the completions of a step may take.
        start_timeout_s: seconds within which a server that is starting must be ready.
        command: what starts it, such as ``vllm serve``; the model, the address and the flags that
            token ids and log-probs need are added.
        options: further flags of the command: ``{"max_model_len": 64}`` is --max-model-len 64.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        start_timeout_s: float,
        command: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.start_timeout_s = start_timeout_s
        self.command = list(command)
        self.options = dict(options or {})
        self.process: ServerProcess | None = None
        self.ready = False
        self.httpx = _httpx()

    def version(self) -> str:
        """Returns its release."""
        return str(self._now("GET", "/version").get("version", "unknown"))

    def _start(self, directory: Path) -> None:
        """Starts the server if that is to be done here, and waits until it is ready."""
        if self.command and self.process is None:
            if self._health() == "ready":
                raise EngineError(
                    f"rollout.vllm.command: a server answers at {self.url} already, wanted the "
                    "address of none"
                )
            at = urlsplit(self.url)
            address = {"host": at.hostname, "port": at.port or 80}
            flags = _flags(address | SERVING | SERVER_ONLY | self.options)
            command = [*self.command, str(directory), *flags]
            self.process = ServerProcess(command, {"VLLM_SERVER_DEV_MODE": "1"})
        end = time.monotonic() + self.start_timeout_s
        while (status := self._health()) != "ready":
            if (ending := self._ending()) is not None:
                raise EngineError(f"rollout.vllm: the server {ending}, wanted one that runs")
            if time.monotonic() > end:
                raise EngineError(
                    f"rollout.vllm: {self.url} is not ready after {self.start_timeout_s:g} s "
                    f"(rollout.vllm.start_timeout_s): {status}"
                )
            time.sleep(POLL_S)
        self.ready = True

    def load(self, directory: Path, label: str) -> None:
        """Replaces the weights while no request runs, of a server that is started if need be.

        After a failure the server stays paused: its weights may be a mixture of old and new.

        Raises:
            EngineError: the server is not ready in time, a route failed, or the server has other
                weights afterwards.
        """
        if not self.ready:
            self._start(directory)
        self._now("POST", "/pause", params={"mode": "wait"})
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(directory)}}
        self._now("POST", "/collective_rpc", json=reload)
        self._now("POST", "/update_weight_version", json={"new_version": label})
        # Keys and values of a prompt under the old weights must not serve the new ones.
        if self._now("POST", "/reset_prefix_cache").get("success") is not True:
            raise EngineError(
                f"rollout.vllm: {self.url} could not empty its prefix cache after an update of the "
                "weights, wanted a server without other requests; it stays paused"
            )
        self._now("POST", "/resume")
        seen = self._now("GET", "/weight_info").get("weight_version")
        if seen != label:
            raise EngineError(
                f"rollout.vllm: {self.url} has the weights {shown(seen)} after an update, wanted "
                f"{label}; another trainer uses this server"
            )

    def generate(self, requests: Sequence[dict[str, Any]]) -> list[list[Choice]]:
        """Sends all requests at once.

        Raises:
            EngineError: a request failed, or not all were answered in ``timeout_s``.
        """

        async def every() -> list[Any]:
            async with self._client() as client:
                asked = [
                    self._ask(client, "POST", "/inference/v1/generate", json=body)
                    for body in requests
                ]
                return await asyncio.gather(*asked)

        return [_choices(answer) for answer in self._within(every, "completions")]

    def close(self) -> None:
        """Ends the server if it was started here; another one is left running."""
        self.ready = False
        if self.process is not None:
            process, self.process = self.process, None
            process.end()

    def _ending(self) -> str | None:
        """Returns how the server's process has ended, ``None`` if it runs or is not ours."""
        return None if self.process is None else self.process.ending()

    def _client(self) -> Any:
        # The whole call has a deadline of its own; requests may queue as long as they like.
        limits = self.httpx.Limits(max_connections=None)
        return self.httpx.AsyncClient(timeout=None, limits=limits, trust_env=False)

    def _now(self, method: str, route: str, **content: Any) -> Mapping[str, Any]:
        """Calls one route."""

        async def one() -> Any:
            async with self._client() as client:
                return await self._ask(client, method, route, **content)

        answer: Any = self._within(one, f"{method} {route}")
        return answer if isinstance(answer, Mapping) else {}

    def _within(self, call: Callable[[], Awaitable[T]], what: str) -> T:
        try:
            return asyncio.run(_at_most(call, self.timeout_s))
        except asyncio.TimeoutError as error:
            raise EngineError(
                f"rollout.vllm: {self.url} did not answer {what} within {self.timeout_s:g} s "
                f"(rollout.vllm.timeout_s); {self._health()}"
            ) from error

    async def _ask(self, client: Any, method: str, route: str, **content: Any) -> Any:
        where = f"rollout.vllm: {method} {self.url}{route}"
        try:
            reply = await client.request(method, self.url + route, **content)
        except self.httpx.HTTPError as error:
            raise EngineError(
                f"{where}: {described(error)}; {await self._health_soon()}"
            ) from error
        if reply.status_code == 200:
            try:
                return reply.json() if reply.content else {}
            except ValueError as error:
                raise EngineError(f"{where} answered {shown(reply.text)}, wanted JSON") from error
        wanted = {
            403: "wanted a server started with --enable-scale-out",
            404: "wanted a server started with VLLM_SERVER_DEV_MODE=1",
        }.get(reply.status_code)
        said = shorten(" ".join(reply.text.split()), 200)
        hint = wanted or await self._health_soon()
        raise EngineError(f"{where} answered {reply.status_code} ({said}); {hint}")

    def _health(self) -> str:
        """Returns ``ready``, or what is wrong with the server."""
        return asyncio.run(self._health_soon())

    async def _health_soon(self) -> str:
        if (ending := self._ending()) is not None:
            return f"the server {ending}"
        try:
            async with self._client() as client:
                reply = await _at_most(lambda: client.get(f"{self.url}/health"), HEALTH_S)
        except (self.httpx.HTTPError, asyncio.TimeoutError):
            return "the server does not answer; wanted one that runs at rollout.vllm.url"
        if reply.status_code == 200:
            return "ready"
        return f"its engine is dead (GET /health: {reply.status_code}); start the server anew"


SERVER_ONLY = {"enable_scale_out": True}
SERVING = {"skip_tokenizer_init": True, "logprobs_mode": "processed_logprobs"}
"""Log-probs are then those of the distribution that was sampled from, at the temperature."""


def _flags(options: Mapping[str, Any]) -> list[str]:
    """Returns options as flags of the command line: ``--max-model-len 64``, ``--enable-this``."""
    flags: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            flags += [f"--{flag}", text]
    return flags


def _httpx() -> ModuleType:
    try:
        import httpx
    except ImportError as error:
        raise UserError(
            f"rollout.engine: vllm needs httpx to reach a server: {error}; "
            "pip install 'wavalign-fast[vllm]'"
        ) from error
    return httpx


async def _at_most(call: Callable[[], Awaitable[T]], seconds: float) -> T:
    return await asyncio.wait_for(call(), seconds)


def _choices(answer: Any) -> list[Choice]:
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or not all(isinstance(it, Mapping) for it in choices):
        raise EngineError(f"rollout.vllm: {shown(answer)} answered, wanted a list of choices")
    return choices


def warn_of_release(release: str) -> None:
    """Warns of a release of vLLM that no test ran with."""
    if not release.startswith(TESTED):
        logger.warning(
            "rollout.vllm: vLLM %s serves, tested are %sx; its routes change between releases",
            release,
            TESTED,
        )
