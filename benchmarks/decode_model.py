"""What a CUDA graph and a question in 8 tokens are worth in a rollout: arithmetic, not measured.

python -m benchmarks.decode_model [--save]

Prints docs/rollouts_on_gpus.md, or writes it. ``tests/benchmarks/test_decode_model.py`` counts the
launches of a layer.
"""

import sys
from typing import NamedTuple

from wavalign_fast.outputs import write_whole
from wavalign_fast.rollout.static_decode import CHECK_EVERY, COLUMNS, KEPT_BYTES

from .scaling import BANDWIDTH_SHARE, GPU, PAGE

DECODE_PAGE = PAGE.with_name("rollouts_on_gpus.md")
LAYER_LAUNCHES, OTHER_LAUNCHES = 46, 90
"""Calls of torch that compute something: a layer of Qwen2 (counted, transformers 5.24), and the
masks, the head and the choice of a token (64 counted, about 26 more for the choice without C++)."""
LAUNCH = 6e-6
"""Seconds of the host for one such call. Assumed: 5 to 10 µs."""
PAUSE = 30e-6
"""Seconds that the device idles when the host asks. Assumed: a copy back, then one graph launch."""
ROWS, TOKENS, PROMPT = 64, 1000, 200


class Model(NamedTuple):
    name: str
    weights: float
    """Weights that a token reads, all but the table of embeddings where that is not the head."""
    layers: int
    cached: int
    """Bytes of keys and values of a token, bf16."""
    shared: int
    """Query heads for each head of keys."""

    @property
    def device(self) -> float:
        """Seconds of a step if memory is the limit: weights once, and all columns of the cache."""
        columns = -(-(PROMPT + TOKENS) // COLUMNS) * COLUMNS
        moved = 2 * self.weights + ROWS * columns * self.cached
        return moved / (BANDWIDTH_SHARE * GPU.memory_bytes)

    @property
    def launches(self) -> int:
        return self.layers * LAYER_LAUNCHES + OTHER_LAUNCHES

    @property
    def host(self) -> float:
        return self.launches * LAUNCH


MODELS = (
    Model("Qwen2.5-0.5B", 494e6, 24, 12 * 1024, 7),
    Model("the paper's 7.73B", 7.73e9 - 168072 * 3584, 28, 56 * 1024, 7),
)


def page() -> str:
    rows = "\n".join(
        f"| {it.name} | {2 * it.weights / 1e9:.1f} GB | {it.launches} | {it.device * 1e3:.1f} ms | "
        f"{it.host * 1e3:.1f} ms | {max(it.host, it.device) / it.device:.1f}× | "
        f"{PAUSE / it.device:.1%} | {PAUSE / CHECK_EVERY / it.device:.1%} | "
        f"{(CHECK_EVERY - 1) / 2 / TOKENS:.1%} |"
        for it in MODELS
    )
    large = MODELS[-1]
    columns = -(-(PROMPT + TOKENS) // COLUMNS) * COLUMNS
    cache = ROWS * columns * large.cached
    repeated = 2 * large.shared * cache / (BANDWIDTH_SHARE * GPU.memory_bytes)
    return f"""# Rollouts on a GPU: a calculation, not a measurement

Written by `python -m benchmarks.decode_model --save`. **No GPU has run this.** Bytes and launches
are counted, and divided by published and assumed rates of an {GPU.name}.

`rollout/static_decode.py` decodes models that transformers marks as compilable in one graph. The
cache is allocated for prompt and answer together. Tokens, ends, log-probs and uniform numbers stay
on the device, and a CUDA graph repeats the step of a token with one launch. The host asks every
{CHECK_EVERY} tokens whether all rows have ended.

{ROWS} rows of {TOKENS} tokens behind prompts of {PROMPT}, weights and cache in bfloat16:

| model | weights | launches | by memory | by launches | graph | ask | in {CHECK_EVERY} | wasted |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{rows}

- *By memory*: time of a step that reads the weights once, and all {columns} columns of the
  cache, at {BANDWIDTH_SHARE:.0%} of {GPU.memory_bytes / 1e12:.2f} TB/s. A cache that grows is
  shorter, but is copied as a whole for every token.
- *By launches*: the host's time for a step without a graph, {LAUNCH * 1e6:.0f} µs a launch
  (assumed; 5 to 10 are usual).
- *Graph*: the slower of both over the step by memory. A small model waits for the host without a
  graph. A large one waits for its memory, and gains little.
- *Ask*: the share of a step that the device idles for the host's question, {PAUSE * 1e6:.0f} µs
  (assumed), if it asks after each token, or after {CHECK_EVERY}.
- *Wasted*: steps after the last end, on average, as a share of the whole rollout.

The capture costs about one step without a graph, once for a shape. `rollout.Twin.refresh` copies
into the same storage, so the graph stays valid. A cache of more than {KEPT_BYTES // 2**30} GiB
is freed after the call, and its graph with it: that of the larger model has
{cache / 2**30:.1f} GiB, which training needs.

Rows that have ended stay in the batch, because a graph has one shape. Each costs its part of the
cache's bytes, but no weights.

transformers 5.16 repeats keys and values for every query head where there is a mask. So it writes
and reads the cache {large.shared} times more, about {repeated * 1e3:.0f} ms a step for the larger
model. Release 5.24 does not.
"""


def main() -> None:
    if "--save" in sys.argv[1:]:
        write_whole(DECODE_PAGE, page().encode())
    else:
        print(page())


if __name__ == "__main__":
    main()
