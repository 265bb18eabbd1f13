"""Makes pairs for DPO of several scored answers to each prompt: the best one and the worst one.

Rules and names are those of WavAlign's released pair builder, without its traps: an answer is never
paired with itself, ``max_samples`` counts what it says, and a missing target is no chosen answer.
"""

import heapq
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from wavalign_fast.data.dialogues.containers import RawRecord
from wavalign_fast.data.dialogues.read import NAMED, unmatched_audio
from wavalign_fast.data.dialogues.records import Place
from wavalign_fast.data.dialogues.schemas import (
    ReadOptions,
    is_legacy,
    is_text,
    make_dialogue,
    number_of,
    structure_errors,
)
from wavalign_fast.errors import UserError, shown

ScoreMode = Literal["sum", "semantic", "paralinguistic", "weighted"]
AUDIO_ROLES = ("prompt", "chosen", "rejected")
PASSED_ON = ("task_type", "question_text", "question_text_raw", "history_text", "source_dataset")


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How pairs are chosen."""

    chosen_source: Literal["best_output", "sft_target"] = "best_output"
    """The chosen answer: the best output, or the demonstration. The gap is that of the outputs."""
    score_mode: ScoreMode = "sum"
    """The score of an output: the sum of its two scores, one of them, or their weighted sum."""
    semantic_weight: float = 1.0
    paralinguistic_weight: float = 1.0
    """Weights of ``score_mode="weighted"``."""
    min_score_gap: float = 1.0
    """Pairs with a smaller gap between best and worst output are left out."""
    tie: Literal["semantic", "first"] = "semantic"
    """Among outputs of equal score the better one has the higher semantic, then the higher
    paralinguistic score (the paper); or the first one counts as best and as worst (the release)."""
    top_k: int | None = None
    """Keep the pairs with the largest gaps, the largest first."""
    max_samples: int | None = None
    """Look at this many records of the file, from its start."""
    validate_audio: bool = False
    """Leave pairs out whose audio files are missing."""
    prompt_audio_root: str | None = None
    gen_audio_root: str | None = None
    sft_audio_root: str | None = None
    """Put in front of the relative paths of prompts, outputs and demonstrations."""

    def __post_init__(self) -> None:
        for name in ("semantic_weight", "paralinguistic_weight", "min_score_gap"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise UserError(f"{name}: {value} given, wanted a number >= 0")
        for name in ("top_k", "max_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: {value} given, wanted at least 1")


class Output(NamedTuple):
    """One scored answer of a model."""

    key: str
    text: str
    audio: str | None
    score: float
    """On the scale that ``score_mode`` gives."""
    semantic: float
    paralinguistic: float


@dataclass
class PairCounts:
    """What became of the records."""

    scanned: int = 0
    kept: int = 0
    """Pairs that passed every check; ``top_k`` may leave some of them out."""
    missing: dict[str, int] = field(
        default_factory=lambda: {"prompt": 0, "chosen": 0, "rejected": 0}
    )
    """Records left out by ``validate_audio``, by the first audio that is missing."""
    skipped: dict[str, list[Place]] = field(default_factory=lambda: defaultdict(list))
    """Where records left out stand, by reason."""
    max_gap: float | None = None
    max_gap_id: Any = None

    def summary(self, options: PairOptions, *, written: int) -> dict[str, Any]:
        """Returns the release's summary, with the reasons for what is left out."""
        return {
            "scanned": self.scanned,
            "kept": written,
            "skipped": sum(map(len, self.skipped.values())),
            "not_in_top_k": self.kept - written,
            "skipped_because": {reason: len(places) for reason, places in self.skipped.items()},
            "first_skipped": {
                reason: [str(place) for place in places[:NAMED]]
                for reason, places in self.skipped.items()
            },
            "chosen_source": options.chosen_source,
            "rejected_source": "worst_output",
            "score_mode": options.score_mode,
            "min_score_gap": options.min_score_gap,
            "tie": options.tie,
            "validate_audio": options.validate_audio,
            **{f"missing_{role}_audio": count for role, count in self.missing.items()},
            "top_k": options.top_k,
            "max_gap": self.max_gap,
            "max_gap_id": self.max_gap_id,
        }


class _SkippedError(Exception):
    """The record makes no pair; the message is the reason."""


def build_pairs(
    records: Iterable[RawRecord], folder: Path, options: PairOptions
) -> tuple[list[dict[str, Any]], PairCounts]:
    """Returns the pairs, in the schema of the release, and what became of the records.

    Args:
        records: with ``output``: {key: {output-text, output-audio, gemini_score: {semantic_score,
            paralinguistic_score}}}. Outputs whose scores are not both numbers do not count.
        folder: that relative paths start from where there is no root.
    """
    counts = PairCounts()
    pairs = _pairs(records, folder, options, counts)
    if options.top_k is None:
        return list(pairs), counts
    return heapq.nlargest(options.top_k, pairs, key=lambda pair: pair["score_gap"]), counts


def _pairs(
    records: Iterable[RawRecord], folder: Path, options: PairOptions, counts: PairCounts
) -> Iterator[dict[str, Any]]:
    for place, record in records:
        if counts.scanned == options.max_samples:
            return
        counts.scanned += 1
        try:
            pair = _pair(record, place, folder, options)
            _check_files(pair, folder, options, counts)
        except _SkippedError as reason:
            counts.skipped[str(reason)].append(place)
            continue
        counts.kept += 1
        if counts.max_gap is None or pair["score_gap"] > counts.max_gap:
            counts.max_gap, counts.max_gap_id = pair["score_gap"], pair["id"]
        yield pair


def _pair(
    record: Mapping[str, Any] | ValueError, place: Place, folder: Path, options: PairOptions
) -> dict[str, Any]:
    if isinstance(record, ValueError):
        raise _SkippedError("not a JSON object")
    if structure_errors(record) or is_legacy(record):
        raise _SkippedError("not of the schema")
    if unmatched_audio(make_dialogue(record, place, folder, ReadOptions())):
        raise _SkippedError("audio tags and audios do not match")
    best, worst = _best_and_worst(record.get("output"), options)
    target = _target(record, options)
    from_target = options.chosen_source == "sft_target"
    if from_target and not any(target):
        raise _SkippedError("no target")
    chosen = target if from_target else (best.text, best.audio)
    gap = best.score - worst.score
    pair = {
        "id": _look_up(record, "id"),
        "messages": record["messages"],
        "audios": [_joined(options.prompt_audio_root, path) for path in record.get("audios") or ()],
        "sft_target_text": chosen[0] or "",
        "sft_target_audio": chosen[1],
        "rejected_text": worst.text,
        "rejected_audio": worst.audio,
        "chosen_score": None if from_target else best.score,
        "rejected_score": worst.score,
        "score_gap": gap,
        "chosen_key": "sft_target" if from_target else best.key,
        "rejected_key": worst.key,
        "best_output_score": best.score,
        "worst_output_score": worst.score,
        "best_output_key": best.key,
        "worst_output_key": worst.key,
        "output_score_gap": gap,
        **{name: _look_up(record, name) for name in PASSED_ON},
    }
    if not from_target:
        pair |= {"orig_sft_target_text": target[0], "orig_sft_target_audio": target[1]}
    return pair


def _best_and_worst(outputs: Any, options: PairOptions) -> tuple[Output, Output]:
    scored = list(_scored(outputs, options)) if isinstance(outputs, Mapping) else []
    if len(scored) < 2:
        raise _SkippedError("fewer than two scored outputs")

    def rank(output: Output) -> tuple[float, ...]:
        ranks = (output.score, output.semantic, output.paralinguistic)
        return ranks if options.tie == "semantic" else ranks[:1]

    best, worst = max(scored, key=rank), min(scored, key=rank)
    if best.key == worst.key:
        raise _SkippedError("all outputs are equally good")
    if best.score - worst.score < options.min_score_gap:
        raise _SkippedError("gap below the minimum")
    if not all(output.text or output.audio for output in (best, worst)):
        raise _SkippedError("an output without text and audio")
    return best, worst


def _scored(outputs: Mapping[str, Any], options: PairOptions) -> Iterator[Output]:
    for key, output in outputs.items():
        scores = output.get("gemini_score") if isinstance(output, Mapping) else None
        if not isinstance(scores, Mapping):
            continue
        semantic = number_of(scores.get("semantic_score"))
        paralinguistic = number_of(scores.get("paralinguistic_score"))
        if semantic is None or paralinguistic is None:
            continue
        text, audio = output.get("output-text") or "", output.get("output-audio") or None
        if not is_text(text) or not is_text(audio):
            continue
        yield Output(
            key,
            text,
            _joined(options.gen_audio_root, audio) if audio else None,
            float(_score(semantic, paralinguistic, options)),
            semantic,
            paralinguistic,
        )


def _score(semantic: float, paralinguistic: float, options: PairOptions) -> float:
    match options.score_mode:
        case "sum":
            return semantic + paralinguistic
        case "semantic":
            return semantic
        case "paralinguistic":
            return paralinguistic
        case "weighted":
            return (
                options.semantic_weight * semantic + options.paralinguistic_weight * paralinguistic
            )
    raise UserError(f"score_mode: {shown(options.score_mode)} given, wanted e.g. sum")


def _target(record: Mapping[str, Any], options: PairOptions) -> tuple[str | None, str | None]:
    """Returns text and audio of the demonstration."""
    text, audio = _look_up(record, "sft_target_text"), _look_up(record, "sft_target_audio")
    return text or None, _joined(options.sft_audio_root, audio) if audio else None


def _look_up(record: Mapping[str, Any], name: str) -> Any:
    """Returns a field of the record, or that of the sample which the outputs were made from."""
    original = record.get("original_sample")
    value = record.get(name)
    return original.get(name) if value is None and isinstance(original, Mapping) else value


def _joined(root: str | None, path: str) -> str:
    return path if root is None else os.path.join(root, path)


def _check_files(
    pair: Mapping[str, Any], folder: Path, options: PairOptions, counts: PairCounts
) -> None:
    """Skips a pair with a missing file, if the options ask for it."""
    if not options.validate_audio:
        return
    chosen_root = (
        options.sft_audio_root if pair["chosen_key"] == "sft_target" else options.gen_audio_root
    )
    roots = (options.prompt_audio_root, chosen_root, options.gen_audio_root)
    files = (pair["audios"], [pair["sft_target_audio"]], [pair["rejected_audio"]])
    for role, root, paths in zip(AUDIO_ROLES, roots, files, strict=True):
        start = folder if root is None else Path()  # a root is the user's, from where they are
        if not all(os.path.exists(start / path) for path in paths if path):
            counts.missing[role] += 1
            raise _SkippedError(f"{role} audio is missing")


def unresolved_paths(pairs: Iterable[Mapping[str, Any]], folder: Path) -> int:
    """Returns how many relative audio paths lead nowhere from ``folder``, where the pairs will be.

    A reader starts relative paths at the folder of its file.
    """
    paths = {
        path
        for pair in pairs
        for path in (*pair["audios"], pair["sft_target_audio"], pair["rejected_audio"])
        if path and not os.path.isabs(path)
    }
    return sum(not os.path.exists(folder / path) for path in paths)
