"""Two steps of TRL's trainer of SFT over the fused head, with an adapter on the head."""

import peft
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers

from wavalign_fast.integrations.trl import FusedSFTTrainer

words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, 40)}
inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
config = transformers.Qwen2Config(vocab_size=len(words), num_key_value_heads=2, **sizes)
trainer = FusedSFTTrainer(
    model=transformers.Qwen2ForCausalLM(config),
    args=trl.SFTConfig(
        output_dir="run", max_steps=2, use_cpu=True, bf16=False, report_to="none", logging_steps=1
    ),
    processing_class=transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>"
    ),
    train_dataset=Dataset.from_dict({"prompt": ["w2 w3"] * 4, "completion": [" w4 w5"] * 4}),
    peft_config=peft.LoraConfig(r=2, target_modules=["lm_head"]),
)
trainer.train()
assert torch.isfinite(torch.tensor(trainer.state.log_history[0]["loss"]))
assert trainer.model.get_output_embeddings().lora_B["default"].weight.abs().max() > 0
