"""Finds the audio files of a run and checks that they can be played."""

from pathlib import Path


def locate(run: Path, name: str) -> Path | str:
    """Returns the WAV file ``name`` of a run, or a few words on why it cannot be played."""
    try:
        path = (run / name).resolve()
        # The page may be published, so it must not include files from outside its run.
        if not path.is_relative_to(run.resolve()):
            return "is outside the run"
        if not path.is_file():
            return "is missing"
        with path.open("rb") as file:
            head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return "is not a WAV file"
        whole = 8 + int.from_bytes(head[4:8], "little")
        return "is cut off" if path.stat().st_size < whole else path
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, RuntimeError):  # a NUL in the name, or a loop of links
        return "is not a file name"
