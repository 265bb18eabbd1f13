"""What the demo costs, in a sentence of docs/getting_started.md."""

from typing import Any

from ..commit import commit_text


def demo_sentence(record: dict[str, Any]) -> str:
    """Downloads, disk and CPU time of ``make demo``, and where they were measured."""
    machine, times = record["machine"], record["times"]
    install, demo = (times[name]["cpu_s"] / 60 for name in ("install", "demo"))
    facts = [
        f"{machine['cpu']}, {machine['cores']} cores",
        commit_text(machine.get("commit")),
        machine["date"],
    ]
    return (
        f"With a CPU build of torch `make demo` downloads {record['download_bytes'] / 1e9:.1f} GB "
        f"and takes {record['disk_bytes'] / 1e9:.1f} GB of disk. Of CPU time it takes "
        f"{install:.0f} minutes to install and compile, and {demo:.0f} to train, evaluate and "
        f"judge ({', '.join(facts)})."
    )
