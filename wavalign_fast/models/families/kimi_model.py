"""Kimi-Audio's two-stream model of three native Qwen2 stacks: text and audio at every position."""

import math
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, Qwen2Config, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2PreTrainedModel

from wavalign_fast.errors import UserError
from wavalign_fast.models.families.registry import KIMI_AUDIO_TYPE
from wavalign_fast.models.transformers_names import cache_argument


class KimiAudioConfig(Qwen2Config):
    """Qwen2's configuration of the text's layers together, with the sizes of the other stacks.

    ``shared_layers`` are the layers that both streams share, ``mimo_layers`` those of the audio
    alone. Checkpoints of a run have it; a family's own directory has its family's.
    """

    model_type = KIMI_AUDIO_TYPE


class StreamStates(NamedTuple):
    """Last hidden states of both streams, after their norms, each [R, L, H]."""

    last_hidden_state: Tensor
    """Of the text stream: ``lm_head`` scores the next text id from it."""
    second_hidden_state: Tensor
    """Of the audio stream, for ``mimo_output``."""


class StreamCaches(NamedTuple):
    """Keys and values of the three stacks."""

    lower: DynamicCache
    upper: DynamicCache
    mimo: DynamicCache


class KimiAudioModel(Qwen2PreTrainedModel):
    """Kimi-Audio on Qwen2's layers.

    The input at a position is E[audio id] + E[text id]; where the prompt has continuous audio it is
    (E[audio id] + vector)·√2 + E[text id]. ``lower`` are the layers that both streams share,
    ``upper`` those of the text alone, ``mimo`` those of the audio alone.

    Args:
        config: its ``shared_layers`` are in ``lower``, its ``mimo_layers`` in ``mimo``.
    """

    config_class = KimiAudioConfig

    # What the base of a model computes without its heads is this forward pass.
    base_model_prefix = ""
    _tied_weights_keys: Any = None

    def __init__(self, config: KimiAudioConfig) -> None:
        super().__init__(config)
        layers, fields = config.num_hidden_layers, config.to_dict()
        shared_layers, mimo_layers = fields["shared_layers"], fields["mimo_layers"]
        if not 1 <= shared_layers <= layers or mimo_layers < 1:
            raise UserError(
                f"{shared_layers} shared layers of {layers} and {mimo_layers} of the audio stream, "
                f"wanted 1 to {layers} and at least 1"
            )
        self.lower = _stack(config, shared_layers, norm=False)
        self.lower.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.upper = _stack(config, layers - shared_layers)
        self.mimo = _stack(config, mimo_layers)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mimo_output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def stacks(self) -> tuple[Qwen2Model, Qwen2Model, Qwen2Model]:
        """``lower``, ``upper`` and ``mimo``."""
        return self.lower, self.upper, self.mimo

    def get_input_embeddings(self) -> nn.Module:
        """The embedding that both streams read."""
        embedding: nn.Module = self.lower.embed_tokens
        return embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head of the text stream."""
        return self.lm_head

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # the stacks can; transformers looks for it in the source of this file

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """Sets the attention of all three stacks."""
        for stack in self.stacks:
            stack.set_attn_implementation(*args, **kwargs)
        super().set_attn_implementation(*args, **kwargs)

    def get_second_output_embeddings(self) -> nn.Linear:
        """The head of the audio stream."""
        return self.mimo_output

    def new_caches(self) -> StreamCaches:
        """Returns empty caches."""
        return StreamCaches(*(DynamicCache(config=stack.config) for stack in self.stacks))

    def embedded(
        self,
        input_ids: Tensor,
        second_ids: Tensor,
        places: Tensor | None = None,
        vectors: Tensor | None = None,
    ) -> Tensor:
        """Returns the model's inputs, [R, L, H].

        Args:
            input_ids: text ids, int64 [R, L].
            second_ids: audio ids, int64 [R, L].
            places: int64 [E], positions in the flattened rows that have continuous audio.
            vectors: [E, H], of ``KimiAudioEncoder``; constants.
        """
        embedding = self.get_input_embeddings()
        audio: Tensor = embedding(second_ids)
        if places is not None and vectors is not None:
            flat = audio.flatten(0, 1)
            heard = (flat[places] + vectors.to(flat.dtype)) * math.sqrt(2.0)
            audio = flat.index_copy(0, places, heard).view_as(audio)
        text: Tensor = embedding(input_ids)
        return audio + text

    def forward(
        self,
        input_ids: Tensor,
        second_ids: Tensor,
        *,
        places: Tensor | None = None,
        vectors: Tensor | None = None,
        caches: StreamCaches | None = None,
        use_cache: bool = False,
        **attention: Any,
    ) -> StreamStates:
        """Computes the hidden states of both streams.

        Args:
            input_ids, second_ids, places, vectors: as for ``embedded``.
            caches: what earlier positions have left; filled with these ones.
            attention: arguments that tell rows apart (``position_ids``, ``attention_mask``, borders
                of packed rows), as Qwen2's own forward takes them.
        """
        states = self.embedded(input_ids, second_ids, places, vectors)

        def run(stack: Qwen2Model, inputs: Tensor, cache: DynamicCache | None) -> Tensor:
            given = {} if cache is None else cache_argument(stack, cache)
            out = stack(
                inputs_embeds=inputs,
                use_cache=cache is not None and use_cache,
                **given,
                **attention,
            )
            hidden: Tensor = out.last_hidden_state
            return hidden

        lower, upper, mimo = caches if caches is not None else (None, None, None)
        shared = run(self.lower, states, lower)
        return StreamStates(run(self.upper, shared, upper), run(self.mimo, shared, mimo))


def _stack(config: Qwen2Config, layers: int, *, norm: bool = True) -> Qwen2Model:
    """Returns layers of Qwen2 without an embedding."""
    fields = config.to_dict() | {"num_hidden_layers": layers, "layer_types": None, "vocab_size": 1}
    for name in ("model_type", "shared_layers", "mimo_layers"):
        del fields[name]
    fields |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    own = Qwen2Config(**fields)
    own._attn_implementation = config._attn_implementation
    stack = Qwen2Model(own)
    stack.embed_tokens = None
    if not norm:
        stack.norm = nn.Identity()
    return stack


# So that transformers' auto classes read the checkpoints of a run.
AutoConfig.register(KIMI_AUDIO_TYPE, KimiAudioConfig)
AutoModelForCausalLM.register(KimiAudioConfig, KimiAudioModel)
