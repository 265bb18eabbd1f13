"""The MTP layers of VITA-Audio: their loss, and generation with them.

Layer k predicts one token further than layer k−1, from its hidden states h_k and the next tokens::

    h_{k+1}[i] = norm(layer_k(proj_k · [RMS_embed_k(E[x_{i+k+1}]) ; RMS_hidden_k(h_k[i])]))

at position i+k+1, causal among its own positions, with h_0 the hidden states of the body and the
body's final norm. ``lm_head(h_{k+1}[i])`` predicts x_{i+k+2}. Log-probs of tokens made so are not
those of the body, so rollouts leave MTP off.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wavalign_fast.errors import shown
from wavalign_fast.models.families.interface import IGNORE
from wavalign_fast.models.families.vita_audio import body_layers, mtp_layers
from wavalign_fast.models.head import output_head
from wavalign_fast.models.loading import cast_weights
from wavalign_fast.models.transformers_names import cache_argument
from wavalign_fast.ops import linear_logprob

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


class MtpLayer(nn.Module):
    """One MTP layer: two norms, a projection, and a decoder layer."""

    def __init__(self, body: "PreTrainedModel") -> None:
        super().__init__()
        from transformers import Qwen2Model
        from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

        config = copy.deepcopy(body.config)
        config.num_hidden_layers, config.layer_types = 1, config.layer_types[:1]
        config.vocab_size, config.pad_token_id = 1, None
        self.embed_norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.hidden_norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.stack = Qwen2Model(config)
        # Embedding and final norm are the body's.
        self.stack.embed_tokens, self.stack.norm = None, nn.Identity()

    def forward(
        self, embedded: Tensor, hidden: Tensor, *, first: int, cache: "Cache | None" = None
    ) -> Tensor:
        """Computes h_{k+1} [B, L, H] before the final norm, from embedded tokens and h_k [B, L, H].

        Args:
            first: the position of the first token.
            cache: keys and values of this layer at earlier positions.
        """
        joined = torch.cat([self.embed_norm(embedded), self.hidden_norm(hidden)], dim=-1)
        positions = torch.arange(first, first + embedded.shape[1], device=embedded.device)
        kept = {} if cache is None else cache_argument(self.stack, cache)
        output = self.stack(
            inputs_embeds=self.proj(joined),
            position_ids=positions.expand(embedded.shape[:2]),
            use_cache=cache is not None,
            **kept,
        )
        hidden = output.last_hidden_state
        return hidden


def load_mtp(
    body: "PreTrainedModel", config: Mapping[str, Any], aside: Mapping[str, Tensor]
) -> nn.ModuleList:
    """Builds the MTP layers of a checkpoint beside its body, in eval mode.

    Args:
        body: the native model; its dtype, device and attention are theirs.
        config: ``config.json``.
        aside: the tensors that the body lacks, by their stored names.
    """
    layers = nn.ModuleList(MtpLayer(body) for _ in range(mtp_layers(config)))
    cast_weights(layers, body.dtype)
    names = stored_names(layers, config)
    layers.load_state_dict({name: aside[stored] for name, stored in names.items()})
    return layers.to(body.device).eval()


def mtp_tensors(layers: nn.ModuleList, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the weights of trained layers by their stored names, for an export."""
    values = dict(layers.named_parameters())
    return {stored: values[name].detach() for name, stored in stored_names(layers, config).items()}


def stored_names(layers: nn.ModuleList, config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the stored name of each weight of the layers."""
    names = {}
    for name, _ in layers.named_parameters():
        k, part, rest = name.split(".", 2)
        if part == "stack":
            stored = f"model.layers.{body_layers(config) + int(k)}.{rest.removeprefix('layers.0.')}"
        else:
            stored = f"mtp_{part}s.{k}.{rest}"
        names[name] = stored
    return names


def mtp_hidden(
    layers: nn.ModuleList,
    body: "PreTrainedModel",
    ids: Tensor,
    hidden: Tensor,
    *,
    detach: bool = False,
) -> list[Tensor]:
    """Computes h_1, h_2, ... of rows; h_{k+1} is [B, L−1−k, H].

    Args:
        ids: int64 [B, L], right-padded.
        hidden: [B, L, H], h_0.
        detach: keeps gradients from the body's hidden states and embedding, as Plus does.
    """
    embedded = body.get_input_embeddings()(ids)
    if detach:
        embedded, hidden = embedded.detach(), hidden.detach()
    found: list[Tensor] = []
    for k, layer in enumerate(layers):
        hidden = body.model.norm(layer(embedded[:, k + 1 :], hidden[:, :-1], first=k + 1))
        found.append(hidden)
    return found


def mtp_losses(
    layers: nn.ModuleList,
    body: "PreTrainedModel",
    ids: Tensor,
    hidden: Tensor,
    labels: Tensor,
    *,
    detach: bool = False,
) -> Tensor:
    """Computes the mean cross-entropy of each layer, float32 [K]; 0 for one without a label.

    The family adds ``mtp_loss_weight`` times their mean to the body's loss.

    Args:
        labels: int64 [B, L], not shifted; ``IGNORE`` where nothing is scored.
        ids, hidden, detach: as for ``mtp_hidden``.
    """
    head, losses = output_head(body), []
    for k, h in enumerate(mtp_hidden(layers, body, ids, hidden, detach=detach)):
        wanted = labels[:, k + 2 :]
        logp = linear_logprob(h[:, :-1], head.weight, wanted, ignore_index=IGNORE).logp
        losses.append(-logp.sum() / (wanted != IGNORE).sum().clamp(min=1))
    return torch.stack(losses)


@torch.no_grad()
def generate_with_mtp(
    layers: nn.ModuleList,
    body: "PreTrainedModel",
    prompt: Sequence[int],
    *,
    mode: Sequence[int],
    max_new_tokens: int,
    stop: Sequence[int] = (),
) -> list[int]:
    """Generates greedily by turns of the body and of the MTP layers, and returns the new ids.

    Args:
        mode: pairs (M, m): M tokens by the body, then m by layers 0, 1, ..., m−1; the last pair
            repeats.
        stop: ids that end the answer; the one that came is returned too.

    Raises:
        ValueError: a mode without pairs or a token of the body, or with more layers than there are.
    """
    if not mode or len(mode) % 2 or min(mode[::2]) < 1 or min(mode[1::2]) < 0:
        raise ValueError(f"mode {shown(mode)}: wanted pairs of at least 1 and at least 0")
    if max(mode[1::2]) > len(layers):
        raise ValueError(f"mode {shown(mode)}: wanted at most {len(layers)} MTP layers")
    plan = list(zip(mode[::2], mode[1::2], strict=True))
    state = _Generation(layers, body, prompt)
    cycle = 0
    while True:
        by_body, by_layers = plan[min(cycle, len(plan) - 1)]
        for step in range(by_body + by_layers):
            token = state.body_step() if step < by_body else state.layer_step(step - by_body)
            new = len(state.ids) - len(prompt)
            if new == max_new_tokens or token in stop:
                return state.ids[len(prompt) :]
        cycle += 1


class _Generation:
    """Ids so far, and what body and layers have seen of them."""

    def __init__(
        self, layers: nn.ModuleList, body: "PreTrainedModel", prompt: Sequence[int]
    ) -> None:
        from transformers import DynamicCache

        self.layers, self.body, self.ids = layers, body, list(prompt)
        self.caches = [DynamicCache() for _ in range(len(layers) + 1)]
        self.seen = [0] * (len(layers) + 1)
        # h_k that layer k has not seen yet.
        self.waiting: list[list[Tensor]] = [[] for _ in layers]

    def body_step(self) -> int:
        """The body reads what it has not seen, and says the next token."""
        first, self.seen[0] = self.seen[0], len(self.ids)
        new = torch.tensor([self.ids[first:]], device=self.body.device)
        positions = torch.arange(first, len(self.ids), device=self.body.device)[None]
        kept = cache_argument(self.body.model, self.caches[0])
        output = self.body.model(new, position_ids=positions, use_cache=True, **kept)
        return self._say(0, output.last_hidden_state)

    def layer_step(self, k: int) -> int:
        """Layer k reads the hidden states that it has not seen, and says the next token."""
        hidden = torch.cat(self.waiting[k], dim=1)
        self.waiting[k].clear()
        first = self.seen[k + 1]
        self.seen[k + 1] += hidden.shape[1]
        tokens = self.ids[first + k + 1 : self.seen[k + 1] + k + 1]
        embedded = self.body.get_input_embeddings()(torch.tensor([tokens], device=self.body.device))
        cache = self.caches[k + 1]
        hidden = self.layers[k](embedded, hidden, first=first + k + 1, cache=cache)
        return self._say(k + 1, self.body.model.norm(hidden))

    def _say(self, k: int, hidden: Tensor) -> int:
        if k < len(self.waiting):
            self.waiting[k].append(hidden)
        token = int(self.body.lm_head(hidden[:, -1]).argmax())
        self.ids.append(token)
        return token
