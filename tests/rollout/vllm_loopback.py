"""A server that speaks the routes of vLLM 0.32 that a rollout engine uses, for tests.

It loads the weights that it is sent and samples by this package's own sampler, so that its ids and
log-probs are those of its weights. ``tests/data/vllm/recorded.json`` has the answers of a real one.
Settings of ``LoopbackVLLM`` make it fail.
"""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import torch
from transformers import AutoModelForCausalLM

from wavalign_fast.rollout import sample_with_logps


class LoopbackVLLM:
    """One server at a free port of this machine; a context.

    Attributes:
        calls: the routes called so far, but GET, in order.
        bodies: the bodies of the requests for completions.
        fail: route -> (status, text), answered instead.
        change: what is done to the list of choices before it is sent.
        dead: after a failed request the engine is dead, and so says /health.
        lose_version: forgets the versions that it is told.
        delay_s: seconds before completions are sent.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.bodies: list[dict] = []
        self.loaded: list[Path] = []
        self.fail: dict[str, tuple[int, str]] = {}
        self.change: Callable[[list[dict]], list[dict]] = lambda choices: choices
        self.dead = self.lose_version = self.paused = False
        self.cache_is_held = False
        self.not_ready = 0  # this many times
        self.delay_s = 0.0
        self.label = "default"
        self.model = None
        self._lock = threading.Lock()
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer()

            def do_POST(self) -> None:
                self.answer()

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length)) if length else {}
                route = urlsplit(self.path)
                status, content = loopback.reply(self.command, route.path, route.query, body)
                data = json.dumps(content).encode() if content is not None else b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackVLLM":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the server; connections are refused from now on."""
        self._server.shutdown()
        self._server.server_close()

    def reply(self, method: str, route: str, query: str, body: dict) -> tuple[int, object]:
        """Returns status and JSON."""
        if method == "POST":
            self.calls.append(f"{route}?{query}" if query else route)
        if route in self.fail:
            status, text = self.fail[route]
            return status, {"error": {"message": text, "code": status}}
        if route == "/health":
            self.not_ready -= 1
            return (503 if self.dead or self.not_ready >= 0 else 200), None
        if route == "/version":
            return 200, {"version": "0.32.0"}
        if route == "/weight_info":
            return 200, {"weight_version": self.label}
        if route in ("/pause", "/resume"):
            self.paused = route == "/pause"
            return 200, {"status": "paused" if self.paused else "resumed"}
        if route == "/update_weight_version":
            self.label = self.label if self.lose_version else body["new_version"]
            return 200, {"success": True, "new_version": body["new_version"]}
        if route == "/reset_prefix_cache":
            return 200, {"success": not self.cache_is_held}
        if route == "/collective_rpc":
            assert self.paused, "weights change while requests run"
            assert body["method"] == "reload_weights"
            return 200, self.load(Path(body["kwargs"]["weights_path"]))
        if route == "/inference/v1/generate":
            return self.generate(body)
        return 404, {"detail": "Not Found"}

    def load(self, directory: Path) -> dict:
        """Reads the model as a server would; its files need not exist afterwards."""
        self.loaded.append(directory)
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()
        return {"results": [None]}

    def generate(self, body: dict) -> tuple[int, object]:
        """Samples the completions of one prompt."""
        assert not self.paused and self.model is not None
        self.bodies.append(body)
        time.sleep(self.delay_s)
        params = body["sampling_params"]
        if max(body["token_ids"]) >= self.model.config.vocab_size:
            self.dead = True
            return 500, {"error": {"message": "EngineCore encountered an issue", "code": 500}}
        with self._lock:
            sampled = sample_with_logps(
                self.model,
                [body["token_ids"]],
                group_size=params["n"],
                max_new_tokens=params["max_tokens"],
                eos_id=params["stop_token_ids"] or None,
                pad_id=0,
                temperature=params["temperature"],
                generator=torch.Generator().manual_seed(params["seed"]),
            )
        choices = [
            choice_of(index, ids, logps.tolist(), params["stop_token_ids"], self.label)
            for index, (ids, logps) in enumerate(zip(sampled.ids, sampled.logps, strict=True))
        ]
        return 200, {"request_id": "r", "choices": self.change(choices)}


def choice_of(index: int, ids: list[int], logps: list[float], ends: list[int], label: str) -> dict:
    """A completion as the route describes it."""
    ended = ids[-1] in ends
    return {
        "index": index,
        "logprobs": {
            "content": [
                {"token_id": token, "logprob": logp, "rank": 1, "top_logprobs": []}
                for token, logp in zip(ids, logps, strict=True)
            ]
        },
        "finish_reason": "stop" if ended else "length",
        "stop_reason": ids[-1] if ended else None,
        "token_ids": ids,
        "routed_experts": None,
        "sampling_mask": None,
        "weight_versions": [{"version": label, "start": 0, "end": len(ids)}],
    }
