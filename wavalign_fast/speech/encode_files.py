"""Encodes many WAV files in parallel; what is in the cache is not encoded again."""

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from wavalign_fast.errors import UserError, one_line
from wavalign_fast.speech.code_cache import CodeCache, FoundCodes, Origin
from wavalign_fast.speech.codec import CodecError, SpeechCodec

MOST_FAILURES = 8
"""Failures of the codec in a row that end the run: it is the codec that fails, not a file."""
WAITING = 4
"""Files that wait for each worker, so that a list of millions is not queued at once."""


@dataclass
class EncodedFiles:
    """What became of the files."""

    origins: Counter[Origin] = field(default_factory=Counter)
    """Files by where their codes come from: "codec", "cache", or "vita" for VITA-Audio's files."""
    codes: int = 0
    """Codes of all of them."""
    failed: dict[Path, str] = field(default_factory=dict)
    """What is wrong with each of the other files."""

    @property
    def done(self) -> int:
        """Files that are through, failed ones included."""
        return self.origins.total() + len(self.failed)


def encode_files(
    paths: Iterable[Path],
    codec: SpeechCodec,
    cache: CodeCache,
    *,
    workers: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> EncodedFiles:
    """Puts the codes of all files into the cache; another call goes on where this one was stopped.

    Args:
        paths: WAV files; those that occur twice count once.
        codec: called from several threads at once.
        workers: threads. One reads and resamples while another waits for the codec.
        progress: called with the files that are through and the number of all, after each file.

    Returns:
        Counts, and the error of each file that cannot be encoded.

    Raises:
        CodecError: the codec failed for ``MOST_FAILURES`` files in a row.
        CacheError: the cache cannot be used.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}, wanted at least 1")
    files = list(dict.fromkeys(paths))
    result, failures = EncodedFiles(), 0
    left = iter(files)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    running: dict[Future[FoundCodes], Path] = {}
    try:
        while True:
            for path in islice(left, workers * WAITING - len(running)):
                running[pool.submit(cache.codes, path, codec)] = path
            if not running:
                return result
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                path = running.pop(future)
                error = _counted(future, path, result)
                failures = failures + 1 if error is not None else 0
                if error is not None and failures == MOST_FAILURES:
                    raise error
                if progress is not None:
                    progress(result.done, len(files))
    finally:
        pool.shutdown(cancel_futures=True)


def _counted(future: "Future[FoundCodes]", path: Path, result: EncodedFiles) -> CodecError | None:
    """Adds the outcome of a file to the result; returns the error if the codec failed."""
    try:
        found = future.result()
    except UserError as error:
        result.failed[path] = one_line(error)
        return error if isinstance(error, CodecError) else None
    result.origins[found.origin] += 1
    result.codes += len(found.codes)
    return None
