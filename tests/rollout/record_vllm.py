"""Records what a real server answers: python -m tests.rollout.record_vllm URL WEIGHTS_DIR

It rewrites ``tests/data/vllm/recorded.json``, to which tests hold the loopback server.
The server has a vocabulary of 320 ids; see docs/vllm.md for its command.
"""

import json
import sys
from pathlib import Path

import httpx

FILE = Path(__file__).parents[1] / "data" / "vllm" / "recorded.json"
VOCABULARY, STEP = 320, 3
ROUTES = [
    ("POST", "/pause?mode=wait", None),
    ("POST", "/collective_rpc", "reload"),
    ("POST", "/update_weight_version", {"new_version": f"recorded:{STEP}"}),
    ("POST", "/reset_prefix_cache", None),
    ("POST", "/resume", None),
    ("GET", "/weight_info", None),
    ("GET", "/health", None),
    ("GET", "/version", None),
    ("GET", "/no_such_route", None),
]


def asked(prompt: list[int], ends: list[int], seed: int) -> dict:
    return {
        "token_ids": prompt,
        "sampling_params": {
            "n": 2,
            "temperature": 0.7,
            "top_p": 1.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
            "max_tokens": 6,
            "logprobs": 0,
            "stop_token_ids": ends,
            "ignore_eos": True,
            "detokenize": False,
            "seed": seed,
        },
    }


def main(url: str, weights: str) -> None:
    found: dict = {"vocabulary": VOCABULARY, "routes": [], "generate": []}
    with httpx.Client(base_url=url, timeout=120) as client:
        for method, route, body in ROUTES:
            if body == "reload":
                body = {"method": "reload_weights", "kwargs": {"weights_path": weights}}
            reply = client.request(method, route, json=body)
            content = reply.json() if reply.content else None
            found["routes"].append([method, route, reply.status_code, content])
        for body in (asked([2, 3, 4], [], 5), asked([7, 8], list(range(100, 250)), 6)):
            reply = client.post("/inference/v1/generate", json=body)
            reply.raise_for_status()
            answer = reply.json() | {"model": "model"}  # it is a path of this machine
            found["generate"].append({"step": STEP, "request": body, "answer": answer})
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
