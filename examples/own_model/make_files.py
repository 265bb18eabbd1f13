"""Makes what you have already if you have a model: a model directory and two JSONL files.

    python make_files.py

The model is Qwen2 with random weights, in the proportions of the one with 0.5 B parameters but a
thousand times smaller. Its tokenizer has one token per byte, and 16 speech tokens.
"""

import json
import random
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_audio|>", "<|end_of_audio|>",
)  # fmt: skip
SPEECH_CODES = 16
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLOURS = ("red", "blue", "green", "black", "white", "pink", "grey", "brown")


def make_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([f"<|audio_{code}|>" for code in range(SPEECH_CODES)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 8) * 8,  # padded, as the tables of real models are
        hidden_size=56,
        intermediate_size=304,
        num_hidden_layers=2,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def make_records(number: int, rng: random.Random) -> list[dict]:
    """Requests to say a colour; the answer is the word, and speech codes that stand for it."""
    records = []
    for _ in range(number):
        place = rng.randrange(len(COLOURS))
        codes = "".join(f"<|audio_{code}|>" for code in (place, place + len(COLOURS)))
        records.append(
            {
                "prompt": f"say {COLOURS[place]}",
                "answer": f"{COLOURS[place]}<|begin_of_audio|>{codes}<|end_of_audio|>",
                "colour": COLOURS[place],
            }
        )
    return records


def main() -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained("my_model")
    make_model(tokenizer).save_pretrained("my_model")
    rng = random.Random(0)
    for name, number in (("train.jsonl", 64), ("held_out.jsonl", 16)):
        lines = [json.dumps(record) + "\n" for record in make_records(number, rng)]
        Path(name).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
