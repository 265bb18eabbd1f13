"""A server that the trainer starts: its flags, its end, and what it says when it ends by itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wavalign_fast.rollout.server_process import ServerProcess
from wavalign_fast.rollout.token_answers import EngineError
from wavalign_fast.rollout.vllm import VLLMServer

SERVER = """
import http.server, json, os, sys
seen, arguments = {"label": "default"}, sys.argv[2:]
port = int(arguments[arguments.index("--port") + 1])
json.dump([arguments, os.environ.get("VLLM_SERVER_DEV_MODE"), os.getpid()], open(sys.argv[1], "w"))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        seen["label"] = body.get("new_version", seen["label"])
        answer = json.dumps({"success": True, "weight_version": seen["label"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    do_POST = do_GET

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def started_by(url: str, *command: str, **options) -> VLLMServer:
    return VLLMServer(
        url, timeout_s=20, start_timeout_s=20, command=[sys.executable, *command], options=options
    )


def is_alive(process: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def wait_for_end(process: int) -> None:
    end = time.monotonic() + 15
    while is_alive(process):
        assert time.monotonic() < end, f"process {process} still runs"
        time.sleep(0.05)


def test_it_is_started_with_the_model_and_ended(url, tmp_path) -> None:
    note = tmp_path / "note"
    server = started_by(url, "-c", SERVER, str(note), max_model_len=64, enforce_eager=True)
    server.load(tmp_path / "model", "run:1")
    arguments, mode, process = json.loads(note.read_text())
    port = url.rpartition(":")[2]
    assert arguments == [
        *(str(tmp_path / "model"), "--host", "127.0.0.1", "--port", port),
        *("--skip-tokenizer-init", "--logprobs-mode", "processed_logprobs"),
        *("--enable-scale-out", "--max-model-len", "64", "--enforce-eager"),
    ]
    assert mode == "1"
    server.load(tmp_path / "model", "run:2")  # the same process
    assert is_alive(process)
    log = server.process.log
    server.close()
    wait_for_end(process)
    assert not log.exists()


def test_one_that_ends_at_once_is_not_waited_for(url, tmp_path) -> None:
    server = started_by(url, "-c", "print('no memory'); raise SystemExit(3)")
    start = time.monotonic()
    with pytest.raises(EngineError, match="ended with exit status 3: no memory") as caught:
        server.load(tmp_path, "run:1")
    assert time.monotonic() - start < 15
    log = server.process.log
    assert str(log) in str(caught.value)
    server.close()
    assert log.read_text() == "no memory\n"  # the user was told of it
    log.unlink()


def test_a_command_that_is_none_says_so(url, tmp_path) -> None:
    server = VLLMServer(url, timeout_s=9, start_timeout_s=9, command=["no-such-command"])
    with pytest.raises(EngineError, match="no-such-command: No such file"):
        server.load(tmp_path, "run:1")
    server.process.log.unlink()


def test_an_address_in_use_is_refused(url, tmp_path) -> None:
    note = tmp_path / "note"
    first = started_by(url, "-c", SERVER, str(note))
    first.load(tmp_path, "run:1")
    second = started_by(url, "-c", SERVER, str(note))
    with pytest.raises(EngineError, match=r"a server answers at .* already"):
        second.load(tmp_path, "run:1")
    first.close()


def test_it_does_not_outlive_a_killed_trainer(tmp_path) -> None:
    note = tmp_path / "note"
    code = f"""
import sys, time
sys.path[:] = {sys.path!r}
from wavalign_fast.rollout.server_process import ServerProcess
ServerProcess([sys.executable, "-c", "import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(99)"], {{}})
time.sleep(99)
"""  # noqa: E501
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # nobody removes its log
    with subprocess.Popen([sys.executable, "-c", code], env=env) as trainer:
        end = time.monotonic() + 60
        while not note.exists() or not note.read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        process = int(note.read_text())
        assert is_alive(process)
        trainer.send_signal(signal.SIGKILL)
    wait_for_end(process)


def test_one_that_ignores_its_end_is_killed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("wavalign_fast.rollout.server_process.END_S", 0.3)
    note = tmp_path / "note"
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(99)"
    )
    server = ServerProcess([sys.executable, "-c", code], {})
    end = time.monotonic() + 20
    while not note.exists() or not note.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert server.ending() is None
    server.end()
    wait_for_end(int(note.read_text()))
    assert os.path.exists(server.log) is False
