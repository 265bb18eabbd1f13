"""Stand-ins for what TRL's tests load from the hub: data and tiny models, made here.

They are relative paths that look like names on the hub. The data are those of TRL's own generator;
models are random ones of the same kinds, with a tokenizer trained on these data. Vision models have
none, so their tests are left out.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

HUB = Path("trl-internal-testing")
SIZES = dict(
    hidden_size=8, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
    intermediate_size=32,
)  # fmt: skip
EXPERTS = dict(
    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1
)
MARKS = {
    "qwen": [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>",
        "</think>", "<tool_response>", "</tool_response>",
    ],
    "llama": [
        "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
        "<|python_tag|>", "<|finetune_right_pad_id|>",
    ],
}  # fmt: skip
SCORER = "ForSequenceClassification"
MODELS: list[tuple[str, str, str, str, dict[str, Any]]] = [
    ("tiny-Qwen2ForCausalLM-2.5", "Qwen2", "ForCausalLM", "qwen2_5", {}),
    ("tiny-Qwen2ForSequenceClassification-2.5", "Qwen2", SCORER, "qwen2_5", {}),
    ("tiny-Qwen3ForCausalLM", "Qwen3", "ForCausalLM", "qwen3", {}),
    ("tiny-Qwen3ForSequenceClassification", "Qwen3", SCORER, "qwen3", {}),
    ("tiny-Qwen3MoeForCausalLM", "Qwen3Moe", "ForCausalLM", "qwen3", EXPERTS),
    ("tiny-LlamaForCausalLM-3.2", "Llama", "ForCausalLM", "llama3_2", {}),
    (
        "tiny-LlamaForSequenceClassification-3.2", "Llama", SCORER, "llama3_2", {},
    ),
    ("tiny-MistralForCausalLM-0.2", "Mistral", "ForCausalLM", "llama3_2", {}),
    ("tiny-Gemma2ForCausalLM", "Gemma2", "ForCausalLM", "llama3_2", {"head_dim": 2}),
    ("tiny-Cohere2ForCausalLM", "Cohere2", "ForCausalLM", "llama3_2", {"logit_scale": 0.125}),
]  # fmt: skip
"""(name on the hub, family, kind, chat template, further settings)."""


def make_data() -> None:
    """Runs TRL's generator, and saves what it would push."""
    import datasets

    def save(self: Any, repo_id: str, config_name: str = "default") -> None:
        folder = Path(repo_id) / config_name
        folder.mkdir(parents=True, exist_ok=True)
        for split, part in self.items() if isinstance(self, dict) else [("train", self)]:
            part.to_parquet(folder / f"{split}.parquet")

    datasets.Dataset.push_to_hub = datasets.DatasetDict.push_to_hub = save
    sys.path.insert(0, "scripts")
    importlib.import_module("generate_zen_dataset").main(0.1, True, str(HUB / "zen"))
    lines = ["---", "configs:"]
    for folder in sorted(path for path in (HUB / "zen").iterdir() if path.is_dir()):
        lines += [f"- config_name: {folder.name}", "  data_files:"]
        for file in sorted(folder.glob("*.parquet")):
            lines += [f"  - split: {file.stem}", f"    path: {folder.name}/{file.name}"]
    (HUB / "zen" / "README.md").write_text("\n".join([*lines, "---", ""]))


def tokenizer(template: str) -> Any:
    """One with the marks of the template's family."""
    import datasets
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rows = datasets.load_dataset(str(HUB / "zen"), "standard_language_modeling")
    text = [line for split in rows.values() for line in split["text"]]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    family = "qwen" if template.startswith("qwen") else "llama"
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=MARKS[family],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator(text, trainer)
    end, pad = ("<|im_end|>", "<|endoftext|>") if family == "qwen" else ("<|eot_id|>", None)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, pad_token=pad)
    made.chat_template = Path("chat_templates", f"{template}.jinja").read_text()
    return made


def make_model(name: str, family: str, kind: str, template: str, more: dict[str, Any]) -> None:
    import torch
    import transformers

    words = tokenizer(template)
    torch.manual_seed(0)
    labels = {"num_labels": 1} if kind == SCORER else {}
    settings = getattr(transformers, f"{family}Config")(
        vocab_size=len(words), pad_token_id=words.pad_token_id, bos_token_id=None,
        eos_token_id=words.eos_token_id, **SIZES, **more, **labels,
    )  # fmt: skip
    dtype = torch.bfloat16 if kind == "ForCausalLM" else torch.float32
    model = getattr(transformers, family + kind)(settings).to(dtype)
    with torch.no_grad():  # so wide that gradients are not lost, as TRL's
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)
    model.save_pretrained(HUB / name)
    words.save_pretrained(HUB / name)


if __name__ == "__main__":
    make_data()
    for model in MODELS:
        make_model(*model)
