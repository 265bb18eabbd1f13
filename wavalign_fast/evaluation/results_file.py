"""Reads ``results.jsonl``, a line for each answer of an evaluation."""

from pathlib import Path

from wavalign_fast.data.jsonl import each_line
from wavalign_fast.errors import DamagedFileError, UserError, one_line
from wavalign_fast.evaluation.outcome import Result
from wavalign_fast.evaluation.run import RESULTS_FILE


def read_results(directory: Path) -> list[Result]:
    """Returns the results of an evaluation, in the order of its prompts.

    Raises:
        UserError: there is no evaluation in the directory, or the file is damaged.
    """
    path = directory / RESULTS_FILE
    if not path.is_file():
        raise UserError(f"no evaluation in {directory}: {RESULTS_FILE} is missing")
    found = []
    for where, record in each_line(path):
        if isinstance(record, ValueError):
            raise DamagedFileError(f"{one_line(record)}; evaluate again writes the file anew")
        found.append(Result.read_from(record, where))
    return found
