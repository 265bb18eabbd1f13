"""The audio files of a run: found inside it, and whole."""

from pathlib import Path


def locate(run: Path, name: str) -> Path | str:
    """The WAV file ``name`` of a run, or why it cannot be played, in a few words."""
    try:
        path = (run / name).resolve()
        # A page that is sent around must not carry files from outside its run.
        if not path.is_relative_to(run.resolve()):
            return "is outside the run"
        if not path.is_file():
            return "is missing"
        with path.open("rb") as file:
            head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return "is no WAV file"
        whole = 8 + int.from_bytes(head[4:8], "little")
        return "is cut off" if path.stat().st_size < whole else path
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, RuntimeError):  # a NUL in the name; a loop of links
        return "is no file name"
