"""A directory of Hugging Face datasets, written and checked."""

import subprocess

from datasets import Dataset

record = {
    "messages": [{"role": "user", "content": "What is two plus two?"}],
    "sft_target_text": "Four.",
}
Dataset.from_list([record]).save_to_disk("dialogues")
subprocess.run(["wavalign-fast", "data", "check", "dialogues"], check=True)
