"""What lives on the device between steps: the sampling copy, a checkpoint, memory, draws."""

import copy

import pytest
import torch
from transformers import Qwen2Config, StaticCache

import wavalign_fast as wf
from tests.gpu.trainer.places import MIXED, PLACES, WORLDS, on_ranks, ranks_of, toy_config, trained
from tests.train.conftest import ToyTask
from wavalign_fast.config.parallel import ParallelConfig
from wavalign_fast.models.transformers_names import cache_argument
from wavalign_fast.plan.planned_run import PlannedRun
from wavalign_fast.plan.training_peak import planned_model, training_peak
from wavalign_fast.rollout import Twin, uniforms
from wavalign_fast.train.checkpoint import CheckpointStore
from wavalign_fast.train.policy import Policy, wrapped


@pytest.mark.parametrize("device", PLACES)
def test_the_random_numbers_of_rollouts_have_the_same_bits_on_every_device(device):
    prompt = torch.arange(64).repeat_interleave(4)
    rollout, tokens = torch.arange(4).repeat(64), torch.arange(500)
    wanted = uniforms(2**63 + 5, 7, prompt, rollout, tokens)
    there = [each.to(device) for each in (prompt, rollout, tokens)]
    found = uniforms(2**63 + 5, 7, *there)
    assert found.device == there[0].device and torch.equal(found.cpu(), wanted)
    assert found.unique().numel() == found.numel()


# The sampling copy in a CUDA graph


class Decode:
    """One decoding step of a model over a static cache; captured in a graph on a GPU."""

    def __init__(self, model, device: str) -> None:
        self.model = model
        self.cache = StaticCache(config=model.config, max_cache_len=8)
        self.token = torch.zeros(2, 1, dtype=torch.int64, device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.graph = None
        self.logits = None
        if device == "cuda":
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):  # warms up, as a capture needs
                    self.run()
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.run()

    def run(self) -> None:
        out = self.model(
            self.token,
            position_ids=self.place[None].expand(2, 1),
            cache_position=self.place,
            use_cache=True,
            **cache_argument(self.model, self.cache),
        )
        self.logits = out.logits

    def __call__(self, tokens: list[list[int]]) -> torch.Tensor:
        """The logits after the last of some tokens per row, from an empty cache."""
        self.cache.reset()
        for place, token in enumerate(zip(*tokens, strict=True)):
            self.token.copy_(torch.tensor(token)[:, None])
            self.place.fill_(place)
            self.run() if self.graph is None else self.graph.replay()
        return self.logits[:, -1].float().cpu()


@pytest.mark.parametrize("device", PLACES)
@torch.no_grad()
def test_a_captured_decode_step_has_the_weights_of_each_refresh(device):
    """No new capture: ``refresh`` writes into the storage that the graph reads."""
    policy = ToyTask().load_model().to(device)
    twin = Twin(policy, torch.bfloat16)
    twin.refresh()
    decode = Decode(twin.model, device)
    tokens = [[2, 3, 4], [5, 6, 7]]
    seen = []
    for _ in range(2):
        ids = torch.tensor(tokens, device=device)
        whole = copy.deepcopy(twin.model)(ids, use_cache=False).logits[:, -1].float().cpu()
        seen.append(decode(tokens))
        torch.testing.assert_close(seen[-1], whole, rtol=2e-2, atol=2e-2)
        for weight in policy.parameters():
            weight.normal_(std=0.3, generator=torch.Generator(device).manual_seed(weight.numel()))
        twin.refresh()
    assert (seen[0] - seen[1]).abs().max() > 0.1


# Checkpoints


def saved_aside(device, directory) -> list[float]:
    """Saves beside training, changes everything at once, and reads what was saved."""
    ranks = ranks_of(device)
    config = toy_config(*MIXED, "train.steps=1", "train.async_checkpoint=true")
    trainer = trained(config, directory, ranks)
    state = [*trainer.policy.parameters()]
    state += [v for held in trainer.optimizer.state.values() for v in held.values()]
    local = [getattr(value, "_local_tensor", value) for value in state]
    wanted = [value.detach().clone() for value in local]
    trainer.save()
    with torch.no_grad():
        for value in local:
            value.add_(1.0)
    trainer.store.finish()
    store = CheckpointStore(directory, ranks=ranks)
    store.load(trainer.policy, trainer.optimizer)
    now = [*trainer.policy.parameters()]
    now += [v for held in trainer.optimizer.state.values() for v in held.values()]
    found = [getattr(value, "_local_tensor", value) for value in now]
    return [
        float((a - b).abs().max()) if a.numel() else 0.0 for a, b in zip(found, wanted, strict=True)
    ]


@pytest.mark.parametrize(("device", "world"), WORLDS)
def test_a_checkpoint_written_aside_has_the_state_of_the_call(device, world, tmp_path):
    for differences in on_ranks(device, world, saved_aside, device, tmp_path):
        assert len(differences) > 30 and max(differences) == 0.0


# Memory

SIZES = dict(
    vocab_size=64000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=6,
    num_attention_heads=16, num_key_value_heads=4, tie_word_embeddings=False,
)  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_a_step_is_what_the_plan_says(checkpointing):
    """To 15 %: the plan counts no gap between blocks, no workspace, and no kernel's scratch."""
    run = PlannedRun(
        compute_dtype=torch.bfloat16, checkpointing=checkpointing, rows=4, length=1024, live=2048
    )
    [measured] = on_ranks("cuda", 1, measured_peak, run)
    assert measured == pytest.approx(training_peak(Qwen2Config(**SIZES), run), rel=0.15)


def measured_peak(run: PlannedRun) -> int:
    """The most bytes of tensors during a forward and backward pass."""
    with torch.device("cuda"):
        policy = Policy(planned_model(Qwen2Config(**SIZES), run))
    wrapped(policy, ParallelConfig(), ranks_of("cuda"), compute_dtype=run.compute_dtype)
    vocab = SIZES["vocab_size"]
    ids = torch.randint(0, vocab, (run.rows, run.length))
    targets = ids.flatten().clone()
    targets[run.live :] = -100
    row = torch.arange(run.rows).repeat_interleave(run.length)
    batch = wf.HybridBatch(targets, torch.full_like(targets, -1), row, torch.ones(1, 2))
    layout = wf.ModalityLayout(vocab_size=vocab, speech=((vocab - 4000, vocab),))
    objective = wf.HybridObjective(layout, gate=0.0, anchor_scope="all")

    def run_once() -> None:
        policy([ids], lambda *operands: objective(*operands[:2], batch).loss).backward()

    run_once()  # what is made once
    policy.zero_grad()
    torch.cuda.reset_peak_memory_stats()
    run_once()
    return torch.cuda.max_memory_allocated()
