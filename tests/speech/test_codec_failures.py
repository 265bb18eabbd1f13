"""A codec of others may be missing, wrong, dead or late: each is one error with its name."""

import ast
import sys
from pathlib import Path

import pytest
import torch

import wavalign_fast
from tests.speech.codecs import address, fake_step_audio, made, options, service
from wavalign_fast.errors import UserError
from wavalign_fast.speech.codec import CodecError
from wavalign_fast.speech.codecs import open_codec
from wavalign_fast.speech.wire import from_text, to_text

FACTS = {"codebook_size": 16384, "codes_per_second": 12.5, "sample_rate": 16000}
CODES = [torch.tensor([5, 6])]


@pytest.fixture
def clone(tmp_path):
    return options("import", tmp_path, "")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "codec: kind is None, wanted one of glm4_voice, step_audio_2, import"),
        ({"kind": "glm4voice"}, "did you mean glm4_voice"),
        ({"kind": "toy", "chanel": 0}, "codec toy: no option 'chanel', .*did you mean channel"),
        ({"kind": "http", "url": "http://x"}, "codec http: codebook_size, codes_per_second, sampl"),
        ({"kind": "http", "url": "x:1", **FACTS}, "http: url is 'x:1', wanted http://HOST"),
        ({"kind": "http", "url": "http://a:b@h:1", "format": "mp3", **FACTS}, "^http h:1: format"),
        (
            {"kind": "http", "url": "http://h", **FACTS, "sample_rate": 0},
            "sample_rate is 0, wanted",
        ),
        ({"kind": "callable", **FACTS}, "callable: neither encode nor decode given"),
        ({"kind": "callable", **FACTS, "encode": "json"}, "'json' given, wanted MODULE:NAME"),
        ({"kind": "callable", **FACTS, "encode": "json:x"}, "cannot be imported: AttributeError"),
        ({"kind": "subprocess", "factory": "a:b", "python": "/no/python"}, "no such interpreter"),
        (
            {"kind": "step_audio_2", "directory": ".", "prompt_wav": "x"},
            r"no such file: speech_tok",
        ),
        (
            {
                "kind": "pair",
                "encode": {"kind": "toy"},
                "decode": {"kind": "toy", "codebook_size": 9},
            },
            "codec pair: codebook_size of toy is 16384, of toy 9",
        ),
        ({"kind": "import", "factory": "json:loads", "batch_size": 0}, "batch_size is 0"),
        (
            {"kind": "import", "factory": "json:loads"},
            "import json:loads: the factory failed: Type",
        ),
    ],
)
def test_wrong_options_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        open_codec(given)


def test_a_clone_must_state_its_facts_or_be_given_them(clone):
    clone.pop("arguments")
    with pytest.raises(CodecError, match="codebook_size is neither given nor an attribute of obj"):
        open_codec({**clone, "factory": "fake_clone:no_facts"})
    codec = open_codec({**clone, "factory": "fake_clone:no_facts", **FACTS})
    assert codec.codebook_size == 16384
    with pytest.raises(CodecError, match="import fake_clone:no_facts: cannot encode: it has no en"):
        codec.encode(torch.zeros(4), 16000)
    with pytest.raises(CodecError, match="cannot decode: it has no decode"):
        codec.decode(CODES)


WRONG_WAVES = {
    1: "a decoded sample is nan, wanted a finite number",
    2: "decoded to 0 waves, wanted 1 waves",
    3: "decoded to torch.int64, wanted floats",
    4: r"a wave of shape \(2, 5\), wanted \[N\]",
    5: r"'a' \(str\) given for a wave",
}


def test_wrong_results_of_a_clone_are_refused(clone):
    codec = open_codec({**clone, "factory": "fake_clone:broken", "arguments": {}})
    for code, message in WRONG_WAVES.items():
        with pytest.raises(CodecError, match=f"^import fake_clone:broken: {message}"):
            codec.decode([torch.tensor([code])])
    assert codec.decode([torch.tensor([6])])[0].tolist() == [1.0, -1.0]  # clipped
    with pytest.raises(CodecError, match="encode failed: SystemExit: no licence"):
        codec.encode(torch.zeros(4), 16000)


def test_a_process_that_fails_dies_or_hangs_is_named_and_replaced(tmp_path, capfd):
    given = options("subprocess", tmp_path, "")
    broken = {"factory": "fake_clone:broken", "arguments": {}, "timeout_s": 60.0}
    codec = open_codec({**given, **broken})
    with pytest.raises(CodecError, match=r"^subprocess fake_clone:broken: SystemExit: no"):
        codec.encode(torch.zeros(4), 16000)
    with pytest.raises(CodecError, match=r"^subprocess fake_clone:broken: SystemExit: no"):
        codec.encode(torch.zeros(5), 16000)
    with pytest.raises(CodecError, match=r"ValueError: a wave of torch.int64 \(2,\), wanted flo"):
        codec.decode([torch.tensor([3])])
    with pytest.raises(CodecError, match="a decoded sample is nan"):
        codec.decode([torch.tensor([1])])
    with pytest.raises(CodecError, match="broken: its process is gone: killed by SIGKILL"):
        codec.encode(torch.zeros(4), 1)
    assert codec.decode([torch.tensor([6])])[0].tolist() == [1.0, -1.0]
    codec._timeout_s = 0.5
    with pytest.raises(CodecError, match=r"waited 0\.5 s for the codes of 4 samples; its process"):
        codec.encode(torch.zeros(4), 2)
    codec.close()
    err = capfd.readouterr().err
    assert err.count("Traceback") == 2  # of the ValueError, and once of the SystemExit
    assert "\nSystemExit: no licence (failure 2 there, traceback above)" in err


def test_files_for_other_interpreters_are_of_old_python():
    package = Path(wavalign_fast.__file__).parent
    for name in (
        "rewards/worker_loop",
        "speech/codec_worker",
        "speech/foreign_code",
        "speech/wire",
    ):
        source = (package / f"{name}.py").read_text()
        assert "from __future__ import annotations" in source
        tree = ast.parse(source, feature_version=(3, 7))
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert modules <= {*sys.stdlib_module_names, "torch"}, name
        assert "collections.abc" not in modules  # typing has what 3.7 can subscript


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with service() as server:
        yield server


WAVE = {"sample_rate": 16000, "format": "float32", "data": to_text(torch.zeros(3))}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((503, b"<html>\nbusy</html>"), "/decode replied status 503: <html> busy</html>"),
        ((200, b"<html>"), "/decode replied no JSON"),
        ((200, b"\xff"), "/decode replied no JSON"),
        ((200, {"waves": []}), '/decode replied .*wanted {"waves": a list of 1}'),
        ((200, ["waves"]), r"/decode replied \['waves'\], wanted"),
        ((200, {"waves": [{**WAVE, "sample_rate": 24000}]}), "decoded to 24000 Hz, wanted 16000"),
        ((200, {"waves": [{**WAVE, "data": "?"}]}), "a wave is .*wanted {"),
        ((200, {"waves": [{**WAVE, "data": "AAAA"}]}), "a wave is .*wanted {"),
        ((200, {"waves": [{**WAVE, "format": "mp3"}]}), "a wave is .*wanted {"),
        ((200, {"waves": ["AAAA"]}), "a wave is 'AAAA', wanted {"),
    ],
)
def test_wrong_replies_of_a_service_are_refused(server, reply, message):
    server.reply = reply
    codec = open_codec({"kind": "http", "url": address(server), **FACTS})
    with pytest.raises(CodecError, match=rf"^http 127\.0\.0\.1:{server.server_port}: {message}"):
        codec.decode(CODES)


def test_a_service_may_encode_wrongly_or_be_gone(server):
    codec = open_codec({"kind": "http", "url": address(server), "batch_size": 2, **FACTS})
    codec.decode(CODES * 3)
    assert [len(request["codes"]) for request in server.requests] == [2, 1]
    server.reply = (200, {"codes": [[1, 16384]]})
    with pytest.raises(CodecError, match="encoded: code 16384 at place 1 of sequence 0, wanted 0"):
        codec.encode(torch.zeros(2000), 16000)
    server.reply = (200, {"codes": [[1.5]]})
    with pytest.raises(CodecError, match=r"encoded: sequence 0 is torch.float32 \(1,\)"):
        codec.encode(torch.zeros(2000), 16000)
    gone = open_codec({"kind": "http", "url": "http://127.0.0.1:1", **FACTS})
    with pytest.raises(CodecError, match=r"^http 127\.0\.0\.1:1: /decode cannot be asked: Conn"):
        gone.decode(CODES)


def test_pcm16_is_sent_where_it_is_asked_for(server):
    codec = open_codec({"kind": "http", "url": address(server), "format": "pcm16", **FACTS})
    assert torch.equal(codec.encode(codec.decode(CODES)[0], 16000), CODES[0])
    sent = server.requests[-1]["waves"][0]
    assert sent["format"] == "pcm16" and len(from_text(sent["data"], "pcm16")) == 2560


def test_step_audio_says_what_is_missing_and_drops_padding(tmp_path, monkeypatch):
    codec = made("step_audio_2", tmp_path, "")
    monkeypatch.setitem(sys.modules, "stepaudio2", None)
    with pytest.raises(
        CodecError, match=r"stepaudio2 is missing: pip install 'wavalign-fast\[step"
    ):
        codec.decode(CODES)
    for name, module in fake_step_audio().items():
        monkeypatch.setitem(sys.modules, name, module)
    alone, silent = codec.decode([torch.tensor([7, 6561, 9]), torch.tensor([6561])])
    assert torch.equal(alone, codec.decode([torch.tensor([7, 9])])[0]) and silent.shape == (0,)
    broken = made("step_audio_2", tmp_path, "")
    monkeypatch.setattr(sys.modules["stepaudio2"], "Token2wav", lambda *a, **k: 1 / 0)
    with pytest.raises(CodecError, match=r"cannot be loaded \(it needs a CUDA GPU\): ZeroDivision"):
        broken.decode(CODES)
