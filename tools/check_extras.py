"""Installs each extra of a wheel alone in a new environment, and does there what the extra is for.

    python tools/check_extras.py dist/wavalign_fast-*cpu*.whl [--extras train judge]

Each environment has torch, the wheel and one extra. torch is installed once, and the environments
see it through a .pth file, so that a check takes seconds. An extra of the wheel without a check in
tools/extras/ is an error, and so is a check without an extra.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

CHECKS = Path(__file__).parent / "extras"
LOSSES_ALONE = "no_extra"


def extras_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return set(HeaderParser().parsestr(archive.read(name).decode()).get_all("Provides-Extra"))


def make_environment(folder: Path) -> Path:
    """Its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / "bin" / "python"


def pip_install(python: Path, *requirements: str) -> None:
    quietly = ["--quiet", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", "install", *quietly, *requirements], check=True)


def see_packages_of(python: Path, base: Path) -> None:
    """Lets an environment import, and pip count as installed, what another one has."""
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folders = [
        subprocess.run([each, "-c", where], check=True, capture_output=True, text=True).stdout
        for each in (python, base)
    ]
    Path(folders[0].strip(), "base.pth").write_text(folders[1], encoding="utf-8")


def run_check(python: Path, name: str) -> None:
    """Runs the check in an empty directory, where Python does not see the checkout."""
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as empty:
        # Run as a file, its folder would be searched first: extras are named like packages.
        command = [str(python), "-c", (CHECKS / f"{name}.py").read_text(encoding="utf-8")]
        done = subprocess.run(command, cwd=empty, env=os.environ | {"PATH": path}, check=False)
    if done.returncode:
        sys.exit(f"{name}: its check ended with status {done.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--extras", nargs="+", metavar="EXTRA", help="only these")
    parser.add_argument("--torch", default=f"torch=={metadata.version('torch').split('+')[0]}")
    arguments = parser.parse_args()
    wheel = arguments.wheel.resolve()
    extras = extras_of(wheel)
    checks = {path.stem.replace("_", "-") for path in CHECKS.glob("*.py")}
    checks.remove(LOSSES_ALONE.replace("_", "-"))
    if extras != checks:
        sys.exit(f"extras and files in {CHECKS} differ: {sorted(extras ^ checks)}")
    chosen = sorted(arguments.extras or extras)
    if unknown := set(chosen) - extras:
        sys.exit(f"the wheel has no extra {sorted(unknown)}, only {sorted(extras)}")
    with tempfile.TemporaryDirectory() as folder:
        base = make_environment(Path(folder, "base"))
        pip_install(base, arguments.torch)
        for extra in (None, *chosen):
            start = time.monotonic()
            python = make_environment(Path(folder, extra or "none"))
            see_packages_of(python, base)
            pip_install(python, f"{wheel}[{extra}]" if extra else str(wheel))
            run_check(python, extra.replace("-", "_") if extra else LOSSES_ALONE)
            seconds = time.monotonic() - start
            print(f"{extra or 'no extra'}: installed and used in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
