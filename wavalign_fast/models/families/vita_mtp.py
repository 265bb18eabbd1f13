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

from wavalign_fast.errors import UserError, shown
from wavalign_fast.models.attention import TAKES_BORDERS
from wavalign_fast.models.families.interface import IGNORE, Family, FamilyFiles
from wavalign_fast.models.families.vita_audio import NAME, body_layers, is_plus, mtp_layers
from wavalign_fast.models.head import output_head
from wavalign_fast.models.meta_weights import weights_on_meta
from wavalign_fast.models.transformers_names import cache_argument
from wavalign_fast.models.weight_files import WeightFiles
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
        if config._attn_implementation in TAKES_BORDERS:  # rows are padded here
            config._attn_implementation = "sdpa"
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


class MtpHead(nn.Module):
    """The MTP layers of a checkpoint, as they are trained beside its body.

    Args:
        layers: K of them.
        config: ``config.json``; of Plus the gradients stay within the layers, final norm and head.

    Attributes:
        loss_weight: ``mtp_loss_weight`` of the checkpoint.
    """

    def __init__(self, layers: nn.ModuleList, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.layers = layers
        self.loss_weight = float(config.get("mtp_loss_weight", 1.0))
        self._detach = is_plus(config)

    def forward(
        self, body: "PreTrainedModel", embedded: Tensor, hidden: Tensor, targets: Tensor
    ) -> Tensor:
        """Computes −Σ log p of each layer over the ids that it learns, float32 [K].

        The family adds ``loss_weight`` / K · Σ_k (that sum / number of those ids) to the body's
        loss.

        Args:
            embedded: [R, L, H], what the body read; rows are right-padded, L is above K.
            hidden: [R, L, H], h_0, what it made of that.
            targets: int64 [R, L], the id after each position; ``IGNORE`` where nothing is learnt.
                Layer k learns those from place k + 1 on.
        """
        if self._detach:
            embedded, hidden = embedded.detach(), hidden.detach()
        head, sums = output_head(body), []
        for k, h in enumerate(mtp_hidden(self.layers, body, embedded, hidden)):
            wanted = targets[:, k + 1 :]
            sums.append(-linear_logprob(h, head.weight, wanted, ignore_index=IGNORE).logp.sum())
        return torch.stack(sums)


def open_mtp(family: Family, files: FamilyFiles, body: "PreTrainedModel") -> MtpHead:
    """Loads the MTP layers beside a body, which may be without values.

    Raises:
        UserError: the checkpoint has none, or a file cannot be read.
    """
    check_has_mtp(family, files)
    with WeightFiles(files.directory) as weights:
        aside = {
            name: weights.tensor(name).clone()
            for name in weights.names
            if name.startswith(_prefixes(files.config))
        }
    return MtpHead(load_mtp(body, files.config, aside), files.config)


def check_has_mtp(family: Family, files: FamilyFiles) -> None:
    """Raises ``UserError`` if a checkpoint has no MTP layers."""
    if family.NAME != NAME or not mtp_layers(files.config):
        raise UserError(
            f"{files.directory} of the family {family.NAME} has no MTP layers, wanted a "
            "checkpoint of VITA-Audio with some, such as Balance or Boost"
        )


def load_mtp(
    body: "PreTrainedModel", config: Mapping[str, Any], aside: Mapping[str, Tensor]
) -> nn.ModuleList:
    """Builds the MTP layers of a checkpoint beside its body, in eval mode.

    Args:
        body: the native model; its dtype and attention are theirs.
        config: ``config.json``.
        aside: the tensors that the body lacks, by their stored names.
    """
    with weights_on_meta():
        layers = nn.ModuleList(MtpLayer(body) for _ in range(mtp_layers(config)))
    values = {
        name: aside[stored_name(name, config)].to(body.dtype)
        for name, _ in layers.named_parameters()
    }
    layers.load_state_dict(values, assign=True)
    return layers.eval()


def mtp_tensors(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the weights of trained layers, ``K.PART.…``, by their stored names, for an export."""
    return {stored_name(name, config): weight.detach() for name, weight in weights.items()}


def stored_name(name: str, config: Mapping[str, Any]) -> str:
    """Returns the stored name of a weight of the layers, ``K.PART.…``."""
    k, part, rest = name.split(".", 2)
    if part == "stack":
        return f"model.layers.{body_layers(config) + int(k)}.{rest.removeprefix('layers.0.')}"
    return f"mtp_{part}s.{k}.{rest}"


def _prefixes(config: Mapping[str, Any]) -> tuple[str, ...]:
    first = body_layers(config)
    own = (f"model.layers.{first + k}." for k in range(mtp_layers(config)))
    return ("mtp_projs.", "mtp_embed_norms.", "mtp_hidden_norms.", *own)


def mtp_hidden(
    layers: nn.ModuleList, body: "PreTrainedModel", embedded: Tensor, hidden: Tensor
) -> list[Tensor]:
    """Computes h_1, h_2, ... of rows; h_{k+1} is [R, L−1−k, H].

    Args:
        embedded, hidden: as for ``MtpHead``.
    """
    found: list[Tensor] = []
    for k, layer in enumerate(layers):
        hidden = body.model.norm(layer(embedded[:, k + 1 :], hidden[:, :-1], first=k + 1))
        found.append(hidden)
    return found


class MtpSampler:
    """Answers greedily by turns of a body and its MTP layers.

    The turns are those of ``mtp_inference_mode`` in ``generation_config.json``, by default one
    token of the body and one of each layer.

    Raises:
        UserError: the checkpoint has no MTP layers.
    """

    def __init__(self, family: Family, files: FamilyFiles) -> None:
        check_has_mtp(family, files)
        self._family = family
        self._files = files
        self._head: MtpHead | None = None
        given = files.generation.get("mtp_inference_mode")
        self.mode: tuple[int, ...] = tuple(given or (1, mtp_layers(files.config)))

    def __call__(
        self, body: "PreTrainedModel", prompts: Sequence[Sequence[int]], *, max_new_tokens: int
    ) -> list[list[int]]:
        """Returns the answers to prompts, one after the other.

        Raises:
            UserError: a prompt has vectors, or the mode cannot be followed.
        """
        if self._head is None:
            self._head = open_mtp(self._family, self._files, body).to(body.device)
        rows = body.get_input_embeddings().weight.shape[0]
        if any(max(prompt) >= rows for prompt in prompts):
            raise UserError("MTP layers: a prompt with vectors given, wanted ids alone")
        stop = self._files.layout.stop
        try:
            return [
                generate_with_mtp(
                    self._head.layers, body, prompt, mode=self.mode,
                    max_new_tokens=max_new_tokens, stop=stop,
                )
                for prompt in prompts
            ]  # fmt: skip
        except ValueError as error:
            raise UserError(f"{self._files.directory}: mtp_inference_mode: {error}") from error


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
