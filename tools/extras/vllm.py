"""The client of a vLLM server, asked at an address where none listens."""

from wavalign_fast.rollout.vllm import VLLMServer

server = VLLMServer("http://127.0.0.1:9", timeout_s=2.0, start_timeout_s=2.0)
try:
    server.version()
except Exception as error:
    assert "127.0.0.1:9" in str(error), error
else:
    raise AssertionError("a server answered at port 9")
