"""The loss of two heads is one: shared λ and denominators, and no forced id in it."""

import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.losses import HybridObjective, group_advantages
from wavalign_fast.models import PackedRows, set_attention
from wavalign_fast.models.families import kimi_audio
from wavalign_fast.models.families.checkpoint import load_family
from wavalign_fast.models.families.interface import IGNORE
from wavalign_fast.models.families.kimi_streams import (
    decisions,
    demonstration,
    rollout,
    shared_normalisers,
    stream_batches,
)
from wavalign_fast.ops import LossOptions

from .audio_cases import close
from .golden import GOLDEN

BLANK, TEXT_END, MEDIA_END = 463, 464, 460
LAMBDA = 0.25


@pytest.fixture(scope="module")
def case():
    return load_family(GOLDEN / "kimi_audio", torch.float64)


@pytest.fixture(scope="module")
def prompt(case):
    return kimi_audio.prompt(case.files, [{"role": "user", "content": "Say it."}], [])


@pytest.fixture(scope="module")
def rows(case, prompt):
    """Two groups of two sampled answers, and three demonstrations, one of text alone."""
    make = torch.Generator().manual_seed(5)

    def ids(low, high, count):
        return torch.randint(low, high, (count,), generator=make).tolist()

    answers = []
    for text, speech in [(4, 3), (1, 6), (9, 2), (2, 1)]:
        audio = [*[BLANK] * 6, *ids(480, 560, speech), MEDIA_END]
        said = [*ids(0, 440, text), TEXT_END, *[BLANK] * len(audio)][: len(audio)]
        answers.append(rollout(case.files.layout, prompt, said, audio))
    targets = [("The answer", [1, 2, 3]), ("Yes", None), (None, [4, 5])]
    demos = [demonstration(prompt, kimi_audio.target(case.files, *target)) for target in targets]
    return answers, demos


def log_probs(model, row):
    """Log-probs of both heads at all positions but the last, [L - 1, V] each."""
    states = model(torch.tensor([row.ids]), torch.tensor([row.second_ids]))
    logits = model.lm_head(states[0]), model.mimo_output(states[1])
    return [head[0, :-1].log_softmax(-1) for head in logits]


def plain_loss(model, rollouts, demos, rewards, scope):
    """The definition, row by row."""
    advantages = group_advantages(rewards).flatten()
    policy, anchor = 0.0, 0.0
    for number, row in enumerate(rollouts):
        labels = (row.labels, row.second_labels)
        for head, (logp, own) in enumerate(zip(log_probs(model, row), labels, strict=True)):
            if scope == "text" and head == 1:
                continue
            tokens = [logp[t, own[t + 1]] for t in range(len(own) - 1) if own[t + 1] != IGNORE]
            ratios = [(token - token.detach()).exp() for token in tokens]
            policy = policy - advantages[number] * sum(ratios) / len(ratios) / len(rollouts)
    for row in demos:
        labels = (row.labels, row.second_labels)
        for logp, own in zip(log_probs(model, row), labels, strict=True):
            tokens = [logp[t, own[t + 1]] for t in range(len(own) - 1) if own[t + 1] != IGNORE]
            if tokens:
                anchor = anchor - sum(tokens) / len(tokens) / len(demos)
    return LAMBDA * policy + (1 - LAMBDA) * anchor


def gradients(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("scope", ["text", "all"])
def test_two_calls_of_the_loss_are_the_loss_of_both_heads(case, rows, scope):
    model, layout = case.model, case.files.layout
    rewards = torch.tensor([[1.0, 3.0], [2.0, -1.0]], dtype=torch.float64)
    model.zero_grad()
    wanted = plain_loss(model, *rows, rewards, scope)
    wanted.backward()
    wanted_gradients = gradients(model)

    options = LossOptions(backend="reference")
    objectives = [
        HybridObjective(stream, policy_scope=scope, gate=LAMBDA, options=options)
        for stream in (layout.stream, layout.second)
    ]
    batches = stream_batches(*rows, rewards)
    normalisers = shared_normalisers(*objectives, batches)
    model.zero_grad()
    every = [row for part in rows for row in part]
    text = PackedRows.of([torch.tensor(row.ids) for row in every])
    audio = torch.tensor([i for row in every for i in row.second_ids])[None]
    states = model(text.ids, audio, position_ids=text.position_ids)
    outputs = [
        objective(hidden[0], head.weight, batch, normalisers=normalisers)
        for objective, hidden, head, batch in zip(
            objectives, states, (model.lm_head, model.mimo_output), batches, strict=True
        )
    ]
    loss = outputs[0].loss + outputs[1].loss
    loss.backward()
    # Qwen2's norms round to float32 inside, in packed rows as alone, but not by the same sums.
    close(loss, wanted, atol=1e-6)
    for name, gradient in gradients(model).items():
        close(gradient, wanted_gradients[name], atol=1e-6)


def test_denominators_count_a_demonstration_once(case, rows):
    layout = case.files.layout
    batches = stream_batches(*rows, torch.zeros(2, 2))
    text, audio = HybridObjective(layout.stream), HybridObjective(layout.second)
    counts = shared_normalisers(text, audio, batches)
    # Each head alone has a label in two demonstrations or three; together they are three.
    assert [float(n) for n in (counts.policy, counts.anchor, counts.rollouts)] == [4, 3, 4]
    options = {"normalisation": "token", "policy_scope": "all"}
    text, audio = (HybridObjective(s, **options) for s in (layout.stream, layout.second))
    tokens = shared_normalisers(text, audio, batches)
    labels = [[label for part in row for label in part] for row in
              ((r.labels, r.second_labels) for r in rows[0])]  # fmt: skip
    scored = sum(label != IGNORE for row in labels for label in row)
    assert float(tokens.policy) == scored and float(tokens.rollouts) == 4
    with pytest.raises(ValueError, match="'token' and 'sequence', want the same"):
        shared_normalisers(text, HybridObjective(layout.second), batches)


def test_forced_ids_are_in_no_completion(case, rows):
    for batch, forced in zip(stream_batches(*rows, torch.zeros(2, 2)), (True, True), strict=True):
        used = (batch.policy_row >= 0) | (batch.anchor_row >= 0)
        assert forced and used.any()
        assert not (batch.targets[used] == BLANK).any()
        assert ((batch.targets == TEXT_END) | (batch.targets == MEDIA_END))[used].any()


def test_a_blank_that_the_text_chose_is_a_decision(case):
    layout = case.files.layout
    text = [BLANK, 7, BLANK, TEXT_END, BLANK, TEXT_END, BLANK, BLANK]
    audio = [MEDIA_END, *[BLANK] * 5, BLANK, MEDIA_END]
    chosen = decisions(layout, text, audio)
    assert chosen == ([True] * 4 + [False] * 4, [False] * 6 + [True] * 2)
    assert decisions(layout, text, audio, speech=False) == (chosen[0], [False] * 8)
    with pytest.raises(ValueError, match="8 text ids and 7 audio ids"):
        decisions(layout, text, audio[1:])


def test_rollouts_must_fit_the_rewards(rows):
    with pytest.raises(UserError, match="4 rollouts for 6 rewards"):
        stream_batches(*rows, torch.zeros(2, 3))


@pytest.mark.parametrize("attention", ["eager", "varlen"])
def test_packed_rows_stay_apart_under_any_attention(case, rows, attention):
    model = case.model
    row = rows[0]
    text = PackedRows.of([torch.tensor(one.ids) for one in row])
    audio = torch.tensor([i for one in row for i in one.second_ids])[None]
    try:
        set_attention(model, attention)
        arguments = text.model_arguments(model)
        arguments.pop("input_ids")
        with torch.no_grad():
            found = model(text.ids, audio, **arguments)
        set_attention(model, "sdpa")
        alone = [model(torch.tensor([one.ids]), torch.tensor([one.second_ids])) for one in row]
    finally:
        set_attention(model, "sdpa")
    for stream in (0, 1):
        close(found[stream][0], torch.cat([states[stream][0] for states in alone]), atol=1e-5)


def test_recomputed_activations_give_the_same_gradients(case, rows):
    from wavalign_fast.models import recompute_activations

    model = kimi_audio.build(case.files.config, torch.float64)
    model.load_state_dict(case.model.state_dict())
    inputs = torch.tensor([rows[0][0].ids]), torch.tensor([rows[0][0].second_ids])
    found = []
    for recompute in (False, True):
        if recompute:
            recompute_activations(model)
            model.train()
        model.zero_grad()
        sum(states.square().sum() for states in model(*inputs)).backward()
        found.append({n: w.grad for n, w in model.named_parameters() if w.grad is not None})
    assert len(found[0]) == len(found[1]) > 0
    for name, gradient in found[0].items():
        close(found[1][name], gradient, atol=1e-9)
