"""Where the files of known benchmarks keep the fields of a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

FIELDS = (
    "id", "task", "prompt", "messages", "audio", "reference", "references", "choices", "category",
    "language", "rubric", "instruction_id_list", "kwargs", "response", "response_audio", "score",
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """The keys of a benchmark's records, and the task of each of its parts."""

    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For a field the keys that may hold it, the first one found counts."""
    tasks: Mapping[str, str] = field(default_factory=dict)
    """Category to task; without an entry the record has to name its task."""
    unique_ids: bool = True
    """Whether the key ``id`` tells records apart."""
    separator: str | None = None
    """What separates several references in one text."""

    def category_of(self, path: Path) -> str | None:
        """Returns the category that a file is named after, such as ``glm-mmsu-law-audio.jsonl``."""
        stem = path.stem.replace("_", "-")
        named = [name for name in self.tasks if f"-{name.replace('_', '-')}-" in f"-{stem}-"]
        return max(named, key=len, default=None)


PLAIN = Preset({name: (name,) for name in FIELDS} | {"audio": ("audio", "audios"), "score": ()})
# https://github.com/MatthewCYM/VoiceBench. `id` is the task of a BBH record.
VOICEBENCH = Preset(
    {**PLAIN.keys, "id": (), "category": ("category", "subset"), "score": ("score",)},
    tasks={
        "alpacaeval": "open",
        "alpacaeval_full": "open",
        "commoneval": "open",
        "wildvoice": "open",
        "mtbench": "open",
        "openbookqa": "mcq",
        "mmsu": "mcq",
        "sd-qa": "qa",
        "ifeval": "ifeval",
        "bbh": "bool",
        "advbench": "refusal",
    },
    unique_ids=False,
)
# https://huggingface.co/datasets/baichuan-inc/OpenAudioBench
OPENAUDIOBENCH = Preset(
    {
        **PLAIN.keys,
        "prompt": ("prompt", "question", "Questions", "instruction", "问题"),
        "audio": ("audio", "audio_filename", "audio_path"),
        "reference": (
            "reference", "answer_normalized_aliases", "answers", "Answer", "answer", "参考答案",
        ),
    },
    tasks={
        "alpaca_eval": "open",
        "llama_questions": "qa",
        "reasoning_qa": "qa",
        "trivia_qa": "qa",
        "web_questions": "qa",
    },
    unique_ids=False,
    separator=";",
)  # fmt: skip
# https://github.com/alibaba/vstyle. `ability` is "role_play/scenario": the part before the slash.
VSTYLE = Preset(
    {
        **PLAIN.keys,
        "prompt": ("prompt", "instruct_text"),
        "audio": ("audio", "instruct_audio_path"),
        "category": ("category", "ability"),
        "response": ("response", "response_text"),
        "response_audio": ("response_audio", "response_audio_path"),
    },
    tasks={
        "acoustic_attributes": "style",
        "instruction": "style",
        "role_play": "style",
        "empathy": "style",
    },
)
PRESETS = {"voicebench": VOICEBENCH, "openaudiobench": OPENAUDIOBENCH, "vstyle": VSTYLE}

IQ = ("mmsu", "openbookqa", "bbh", "ifeval")
"""The categories whose mean, in per cent, the WavAlign paper calls IQ."""
EQ = ("acoustic_attributes", "instruction", "role_play", "empathy")
"""The categories of VStyle whose mean, 1 to 5, the paper calls EQ."""
