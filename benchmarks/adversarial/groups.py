"""The groups that ``Case.items`` numbers, and the reports that no case can reproduce."""

from typing import NamedTuple

GROUPS = {
    1: "Positive log-probabilities at a large vocabulary",
    2: "Vocabularies and hidden sizes that fill no tile",
    3: "Common offsets and wide spreads of the logits",
    4: "Offsets and grids beyond 32 and 16 bits",
    5: "The head's gradient summed in bf16",
    6: "Gradients of single tokens",
    7: "Ignored tokens, and nothing but ignored tokens",
    8: "Empty batches and absent gradients",
    9: "Biases, and gradients that a filter drops",
    10: "Shared, frozen, sharded and mixed-precision heads",
    11: "Ids banned by -inf",
    12: "Entropy without its gradient",
    13: "Targets outside the vocabulary",
    14: "A finite loss with gradients of NaN",
    15: "Auxiliary terms in the reported loss",
    16: "Normalisers under gradient accumulation",
    17: "Vocabularies above 250 000",
    18: "The same token, another log-probability",
    19: "Ratios under top-p and top-k sampling",
    20: "Buffers as large as the logits or the head",
    21: "Speed on one machine",
    22: "Heads with LoRA, entropies, and places where a fused loss cannot run",
    23: "Found here while comparing",
}


class NotApplicable(NamedTuple):
    item: int
    title: str
    reason: str


NOT_APPLICABLE: tuple[NotApplicable, ...] = tuple(
    NotApplicable(*entry)
    for entry in (
        (4, "Hidden states of more than 2^31 elements", "8 GiB of fp32 for one operand; N·V over "
         "2^31 exercises the same offsets"),
        (7, "JSD that ignores ignore_index (Liger#974)", "no provider here has a divergence"),
        (10, "ZeRO-3 heads gathered again in backward (trl#7065, trl#7077)", "needs DeepSpeed on "
         "several devices; the head in fp32 over bf16 states is the case mixed-dtypes"),
        (12, "GRPO options silently ignored (unsloth-zoo#890)", "a trainer's options, not an op's; "
         "ours raise, which the tests of the losses check"),
        (14, "Illegal access with triton 3.5 (Liger#916)", "needs a GPU"),
        (15, "z-loss in the reported cross-entropy (OLMo-core#702)", "no provider here reports "
         "components but ours, whose parts the tests of the losses compare"),
        (16, "DAPO's normaliser across ranks and micro-batches (trl#6024, ms-swift#10116)", "a "
         "denominator is not an argument that the providers share; sums and means over "
         "micro-batches are the cases micro-batches and grpo-micro-batches"),
        (17, "Tensor-parallel metadata lost under FSDP (Megatron-LM#4888), the fused path with "
         "pipeline parallelism (verl#1720, verl#3730)", "needs several devices"),
        (19, "Ratios biased by top-p and top-k (trl#6789, trl#7269, vllm#49577, vllm#42259)",
         "needs the sampler's support; none of the providers takes one on a CPU. A support given "
         "as a ban of all other ids is the case banned-by-bias"),
        (20, "Chunks sized by free memory (unsloth-zoo#857, unsloth-zoo#947, unsloth-zoo#1243)",
         "runs on GPUs only; that ours does not depend on its budget is a test of the ops"),
        (20, "Prompt log-probs of an inference server (vllm#5907, vllm#52054)", "a server, not an "
         "op; the case memory is its cause"),
        (21, "Slow on one GPU, slow by a default chunk (quack#68)", "a timing decides nothing "
         "here; the benchmarks beside this suite show timings"),
        (22, "LoRA on the head ignored by a wrapper that reads .weight (trl#4612, trl#5977)",
         "the wrapper's doing, not the op's: it needs a whole model and peft; the op itself is the "
         "case lora-head"),
        (22, "Fused heads in every backend (cce#41, NeMo-RL#4222, NeMo-RL#4169, "
         "open-instruct#1473)", "a wish for other packages"),
    )
)  # fmt: skip
