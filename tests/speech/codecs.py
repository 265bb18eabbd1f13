"""A codec of each kind, all of them small: a fake clone, a fake package, a loopback service."""

import json
import sys
import threading
import types
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from tests.speech.glm4_voice import DECODER, TOKENIZER
from wavalign_fast.speech.codecs import open_codec
from wavalign_fast.speech.toy_codec import ToyCodec
from wavalign_fast.speech.wave_files import wave_bytes
from wavalign_fast.speech.wire import from_text, to_text

CLONE = """
import os
import random
import channels  # its own; this package has a file of this name
import numpy
import torch

torch.rand(1)  # an import that draws


class Codec:
    codes_per_second = 160.0
    sample_rate = 16000

    def __init__(self, size):
        torch.manual_seed(42)  # as GLM-4-Voice's decoder does
        self.codebook_size = size
        self.weights = torch.randn(3)

    def encode(self, wave, sample_rate):
        noise = 1e-6 * (torch.rand(1).item() + numpy.random.rand() + random.random())
        blocks = torch.nn.functional.pad(wave, (0, -len(wave) % 100)).view(-1, 100)
        loud = blocks.abs().mean(1) + noise
        return (loud * (self.codebook_size - 1)).round().int().numpy()[None]

    def decode(self, codes):
        waves = []
        for row in codes:
            wave = (row.float() / (self.codebook_size - 1)).repeat_interleave(100)
            noise = torch.rand(1).item() + numpy.random.rand() + random.random()
            waves.append((wave + 1e-3 * noise)[None])
        torch.manual_seed(int(codes[0][0]))
        return waves


def make(size):
    return Codec(size * channels.FACTOR)


class Broken(Codec):
    def encode(self, wave, sample_rate):
        if sample_rate == 1:
            os.kill(os.getpid(), 9)
        if sample_rate == 2:
            import time
            time.sleep(600)
        raise SystemExit("no licence")

    def decode(self, codes):
        return {1: [torch.tensor([0.0, float("nan")])], 2: [], 3: [torch.tensor([1, 2])],
                4: [torch.zeros(2, 5)], 5: ["a"], 6: [torch.tensor([3.0, -3.0])]}[int(codes[0][0])]


def broken():
    return Broken(50)


def no_facts():
    return object()
"""


class Service(BaseHTTPRequestHandler):
    """Serves ``ToyCodec``; ``server.reply`` replaces its answers."""

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(content)
        status, reply = self.server.reply or (200, self._reply(content))
        body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reply(self, content):
        codec = ToyCodec()
        if self.path == "/base/encode":
            sent = content["waves"]
            waves = [(from_text(one["data"], one["format"]), one["sample_rate"]) for one in sent]
            return {"codes": [codec.encode(*wave).tolist() for wave in waves]}
        waves = codec.decode([torch.tensor(row) for row in content["codes"]])
        given = {"sample_rate": codec.sample_rate, "format": "pcm16"}
        return {"waves": [{**given, "data": to_text(wave, "pcm16")} for wave in waves]}

    def log_message(self, *args):
        pass


@contextmanager
def service():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.reply, server.requests = None, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def address(server) -> str:
    return f"http://127.0.0.1:{server.server_port}/base"


def fake_step_audio(codes_of_second: int = 25) -> dict[str, types.ModuleType]:
    """The two packages of Step-Audio 2's codec, with the calls that the adapter makes."""

    class Tokenizer(torch.nn.Linear):
        def quantize(self, mels, lengths):
            assert mels.shape[:2] == (1, 128) and lengths.tolist() == [mels.shape[2]]
            noise = torch.rand(1).item() * 1e-9
            codes = (mels[:, 0, ::4] * 6560 + noise).round().int()
            return torch.nn.functional.pad(codes, (0, 2)), torch.tensor([codes.shape[1]])

    class Token2wav:
        def __init__(self, directory, float16, n_timesteps):
            torch.manual_seed(1)
            self.audio_tokenizer = Tokenizer(1, 1)
            self.made_of = (directory, float16, n_timesteps)

        def __call__(self, codes, prompt_wav):
            assert Path(prompt_wav).is_file() and 6561 not in codes
            noise = 0.01 * torch.rand(1)
            wave = torch.tensor(codes).repeat_interleave(960) / 6561 * 0.9 + noise
            return wave_bytes(wave, 24000)

    step, tokenizer = types.ModuleType("stepaudio2"), types.ModuleType("s3tokenizer")
    step.Token2wav = Token2wav
    tokenizer.padding = lambda mels: (torch.stack(mels), torch.tensor([mels[0].shape[1]]))
    tokenizer.log_mel_spectrogram = lambda wave: (
        torch.nn.functional.pad(wave, (0, -len(wave) % 160)).view(-1, 160).mean(1).abs()
    ).expand(128, -1)
    return {"stepaudio2": step, "s3tokenizer": tokenizer}


def options(kind: str, folder: Path, url: str) -> dict:
    """The options of a codec of this kind, whose files are made in ``folder``."""
    clone = folder / "clone"
    clone.mkdir(exist_ok=True)
    (clone / "fake_clone.py").write_text(CLONE)
    (clone / "channels.py").write_text("FACTOR = 2\n")
    of_clone = {"factory": "fake_clone:make", "paths": [str(clone)], "arguments": {"size": 30}}
    if kind == "step_audio_2":
        (folder / "speech_tokenizer_v2_25hz.onnx").write_bytes(b"weights")
        (folder / "voice.wav").write_bytes(wave_bytes([0.0] * 10, 24000))
        return {"kind": kind, "directory": folder, "prompt_wav": folder / "voice.wav"}
    facts = {"codebook_size": 16384, "codes_per_second": 12.5, "sample_rate": 16000}
    return {
        "kind": kind,
        **{
            "toy": {"codebook_size": 500},
            "glm4_voice": {"tokenizer": TOKENIZER, "decoder": DECODER, "steps": 1},
            "import": of_clone,
            "subprocess": {**of_clone, "python": sys.executable, "timeout_s": 60},
            "callable": {"encode": "tests.speech.codecs:encode", "decode": decode, **facts},
            "http": {"url": url, **facts},
            "pair": {"encode": {"kind": "toy"}, "decode": ToyCodec()},
        }[kind],
    }


def encode(wave, sample_rate):
    codes = ToyCodec().encode(wave, sample_rate)
    return (codes + torch.randint(0, 2, codes.shape)) % 16384


def decode(codes):
    return [wave + 1e-3 * torch.rand(1) for wave in ToyCodec().decode(codes)]


def made(kind: str, folder: Path, url: str):
    return open_codec(options(kind, folder, url))
