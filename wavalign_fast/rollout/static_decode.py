"""Decodes on a GPU over a cache of fixed size: no host sync but one in ``CHECK_EVERY`` tokens.

Tokens, ends, lengths, log-probs and uniform numbers stay on the device, and every tensor keeps its
shape and address. So a CUDA graph records the step of one token once, and repeats it with one
launch. ``docs/rollouts_on_gpus.md`` computes what that is worth.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from wavalign_fast.errors import one_line
from wavalign_fast.models.transformers_names import cache_argument
from wavalign_fast.rollout import cuda_graphs
from wavalign_fast.rollout.checks import refuse_logits
from wavalign_fast.rollout.choice import NO_TOKEN, choose_with_logps
from wavalign_fast.rollout.lean_model import ROPE_TYPES
from wavalign_fast.rollout.prefill import Prefix
from wavalign_fast.rollout.settings import Settings
from wavalign_fast.rollout.weights import base_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, StaticCache

DEVICES = ("cuda",)
"""Kinds of device that decode here."""

GRAPH_DEVICES = ("cuda",)
"""Kinds of device whose steps are captured."""

CHECK_EVERY = 8
"""Tokens between two questions of the host, whether all rows have ended.

A question drains the queue of launches, a pause b of about 30 µs. Asking every k tokens costs n·b/k
for n tokens, and k/2 steps of s at the end that nobody needs: the sum is least at k = √(2nb/s),
which is 8 for 512 tokens of 0.5 ms, and both costs are then below 1 % of the decode."""

COLUMNS = 128
"""The cache's length is rounded up to a multiple of this, so that prompts of about one length find
the graph of the call before. Attention reads at most 127 columns in vain."""

WARM_UP_STEPS = 2
"""Steps before the capture. They are steps of the decode like any other."""

KEPT_BYTES = 2**30
"""A cache up to this size stays for the next call, with its graph. A larger one is freed, because
training needs the memory more: capturing again costs about as much as one step without a graph."""

ATTENTIONS = ("sdpa", "varlen")
"""Attentions that take a mask over a cache of fixed size. ``eager`` copies numbers of the host into
its mask, which no graph records."""


class Decoded(NamedTuple):
    """Completions on the device; what is behind a row's length means nothing."""

    ids: Tensor
    """int64 [N, T]."""
    logps: Tensor
    """float32 [N, T]."""
    lengths: Tensor
    """int64 [N]."""


class StaticDecode:
    """The buffers of N rows of up to T tokens, over a cache of C columns.

    Attributes:
        replay: repeats the captured step; ``None`` before the capture, and without one.
        wants_graph: whether the step is to be captured, which failed or is not possible if not.
    """

    def __init__(
        self, model: "PreTrainedModel", prefix: Prefix, settings: Settings, cache: "StaticCache"
    ) -> None:
        rows = len(prefix.real) * settings.group_size
        new: dict[str, Any] = {"device": prefix.logits.device}
        self.settings = settings
        self.cache = cache
        self.argument = cache_argument(model, cache)
        for layer, prompt in zip(cache.layers, prefix.cache.layers, strict=True):
            # Allocates; only the shapes, dtypes and the device of these are read.
            like = (
                part.new_empty(rows, part.shape[1], 0, part.shape[3])
                for part in (prompt.keys, prompt.values)
            )
            layer.lazy_initialization(*like)
        columns = cache.layers[0].max_cache_len
        table = (rows, settings.max_new_tokens)
        self.mask = torch.empty(rows, columns, dtype=torch.bool, **new)
        self.positions = torch.empty(rows, dtype=torch.int64, **new)  # of ``tokens``
        self.tokens = torch.empty(rows, dtype=torch.int64, **new)  # chosen last
        self.step = torch.empty(1, dtype=torch.int64, **new)  # tokens chosen so far
        self.ends = torch.tensor(sorted(settings.ends), dtype=torch.int64, **new)
        self.draws = torch.empty(table, dtype=torch.float64, **new)
        self.written = torch.empty(table, dtype=torch.int64, **new)
        self.logps = torch.empty(table, **new)
        self.lengths = torch.empty(rows, dtype=torch.int64, **new)
        self.live = torch.empty(rows, dtype=torch.bool, **new)
        self.broken = torch.empty(3, dtype=torch.int64, **new)  # whether; its row and step
        self.broken_logits = torch.empty_like(prefix.logits[0])
        self.wants_graph = prefix.logits.device.type in GRAPH_DEVICES
        self.warmed = 0
        self.replay: Callable[[], None] | None = None

    def __call__(self, model: "PreTrainedModel", prefix: Prefix, draws: Tensor | None) -> Decoded:
        """Decodes all rows.

        Raises:
            UserError: logits of a row that had not ended are not a distribution.
        """
        self._begin(prefix, draws)
        self._choose(prefix.logits.repeat_interleave(self.settings.group_size, 0))
        for step in range(1, self.settings.max_new_tokens):
            if step % CHECK_EVERY == 0 and not self._goes_on():
                break
            self._advance(model)
        else:
            self._goes_on()
        return Decoded(self.written, self.logps, self.lengths)

    def _begin(self, prefix: Prefix, draws: Tensor | None) -> None:
        group, length = self.settings.group_size, prefix.real.shape[1]
        # Zeros everywhere: a NaN of the call before would pass through any mask.
        self.cache.reset()
        for layer, prompt in zip(self.cache.layers, prefix.cache.layers, strict=True):
            for own, part in ((layer.keys, prompt.keys), (layer.values, prompt.values)):
                own.unflatten(0, (-1, group))[:, :, :, :length].copy_(part[:, None])
            layer.cumulative_length.fill_(length)
        # Columns that are not written yet lie in the future, which the model masks by itself.
        self.mask.fill_(True)
        self.mask[:, :length] = prefix.real.repeat_interleave(group, 0)
        self.positions.copy_(prefix.lengths.repeat_interleave(group))
        if draws is not None:
            self.draws.copy_(draws)
        self.lengths.fill_(self.settings.max_new_tokens)
        self.live.fill_(True)
        self.step.zero_()
        self.broken.zero_()

    def _advance(self, model: "PreTrainedModel") -> None:
        """Decodes one token of every row: by the graph, or on the way to it."""

        def step() -> None:
            out = model(
                self.tokens[:, None],
                attention_mask=self.mask,
                position_ids=self.positions[:, None],
                use_cache=True,
                **self.argument,
            )
            self.positions.add_(1)
            self._choose(out.logits[:, -1])

        if self.wants_graph and self.replay is None and self.warmed == WARM_UP_STEPS:
            self._capture(step)
        if self.replay is not None:
            self.replay()
        elif self.wants_graph:
            self.warmed += 1
            cuda_graphs.run_aside(step)
        else:
            step()

    def _capture(self, step: Callable[[], None]) -> None:
        try:
            self.replay = cuda_graphs.capture(step)
        except RuntimeError as error:
            self.wants_graph = False
            warnings.warn(
                f"rollouts decode without a CUDA graph, several times slower: {one_line(error)}",
                stacklevel=2,
            )

    def _choose(self, logits: Tensor) -> None:
        """Chooses a token of every row, and notes ends and failures. Runs on the device alone."""
        temperature = self.settings.temperature
        uniform = self.draws.index_select(1, self.step)[:, 0] if temperature > 0 else None
        chosen, logps = choose_with_logps(logits, temperature, uniform)
        self._note_broken(logits, self.live & (chosen == NO_TOKEN))
        self.written.index_copy_(1, self.step, chosen[:, None])
        self.logps.index_copy_(1, self.step, logps[:, None])
        self.step.add_(1)
        ended = self.live & (chosen[:, None] == self.ends).any(1)
        self.lengths.copy_(torch.where(ended, self.step, self.lengths))
        self.live.logical_and_(~ended)
        # A finished row may have NO_TOKEN; feed it any id, because its output is not used.
        self.tokens.copy_(chosen.clamp(min=0))

    def _note_broken(self, logits: Tensor, broken: Tensor) -> None:
        """Keeps the place and the logits of the first row that is not a distribution."""
        seen = broken.any()
        row = broken.long().argmax()
        now = torch.stack([seen.long(), row, self.step[0]])
        first = seen & (self.broken[0] == 0)
        self.broken.copy_(torch.where(first, now, self.broken))
        kept = logits.index_select(0, row[None])[0]
        self.broken_logits.copy_(torch.where(first, kept, self.broken_logits))

    def _goes_on(self) -> bool:
        """Whether a row has not ended. The only host sync of the decode."""
        live, failed, row, step = torch.cat([self.live.sum()[None], self.broken]).tolist()
        if failed:
            refuse_logits(self.broken_logits, row, step, self.settings.group_size)
        return bool(live)


class _Kept(NamedTuple):
    key: tuple[Any, ...]
    decode: StaticDecode


_kept: WeakKeyDictionary[Any, _Kept] = WeakKeyDictionary()


def static_decode(
    model: "PreTrainedModel", prefix: Prefix, settings: Settings
) -> StaticDecode | None:
    """Returns a decode of this model over a cache of fixed size; ``None`` if it takes none.

    It is that of the call before, with its graph, if the shapes and settings are the same and all
    weights lie where they lay. What the weights hold may have changed.
    """
    if not _takes_static_cache(model, prefix):
        return None
    longest = prefix.real.shape[1] + settings.max_new_tokens
    columns = -(-longest // COLUMNS) * COLUMNS
    weights = [*model.parameters(), *model.buffers()]
    places = tuple((it.data_ptr(), it.dtype) for it in weights)
    key = (settings, len(prefix.real), columns, model.config._attn_implementation, places)
    found = _kept.get(model)
    if found is not None and found.key == key:
        return found.decode
    _kept.pop(model, None)
    del found  # frees its cache before the new one is allocated
    cache = _static_cache(model, prefix, columns)
    if cache is None:
        return None
    decode = StaticDecode(model, prefix, settings, cache)
    # The switches of adapters are in the graph, and not in the key.
    if base_of(model) is model and _bytes(cache) <= KEPT_BYTES:
        _kept[model] = _Kept(key, decode)
    return decode


def release(model: "PreTrainedModel") -> None:
    """Frees the cache and the graph that wait for the next call, before its weights move."""
    _kept.pop(model, None)


def _takes_static_cache(model: "PreTrainedModel", prefix: Prefix) -> bool:
    """Whether a step of this model runs on the device alone, in shapes that stay."""
    from transformers.cache_utils import DynamicLayer

    base: Any = base_of(model)
    return (
        model.device.type in DEVICES
        # It has no branch that depends on what tensors hold.
        and bool(getattr(base, "_can_compile_fullgraph", False))
        and base.config._attn_implementation in ATTENTIONS
        and _has_fixed_angles(base.config)
        and all(
            type(layer) is DynamicLayer and layer.keys is not None for layer in prefix.cache.layers
        )
        # A graph would repeat a hook's kernels without the hook.
        and not any(
            module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
            for module in model.modules()
        )
    )


def _has_fixed_angles(config: Any) -> bool:
    """Whether no rotary embedding looks at the length of the sequence, which is a host sync."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    return all(kind.get("rope_type", "default") in ROPE_TYPES for kind in kinds)


def _static_cache(model: "PreTrainedModel", prefix: Prefix, columns: int) -> "StaticCache | None":
    from transformers import StaticCache
    from transformers.cache_utils import StaticLayer

    cache = StaticCache(config=model.config, max_cache_len=columns)
    same = len(cache.layers) == len(prefix.cache.layers)
    # Other layers count tokens in Python, where a graph does not.
    return cache if same and all(type(layer) is StaticLayer for layer in cache.layers) else None


def _bytes(cache: "StaticCache") -> int:
    return sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
