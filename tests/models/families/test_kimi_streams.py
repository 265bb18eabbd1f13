"""The loss of two heads is one: shared λ and denominators, and no forced id in it."""

import pytest
import torch

from wavalign_fast.data.records import Completion, Demonstration, Example
from wavalign_fast.errors import UserError
from wavalign_fast.losses import HybridBatch, HybridObjective, ModalityLayout
from wavalign_fast.losses.two_heads import TwoHeadObjective, TwoHeads
from wavalign_fast.models import (
    PromptEmbeddings,
    StreamBlock,
    TwoStreams,
    heads_of,
    set_attention,
)
from wavalign_fast.models.families import kimi_audio
from wavalign_fast.models.families.checkpoint import load_family
from wavalign_fast.models.families.interface import Audio
from wavalign_fast.models.families.kimi_streams import decisions
from wavalign_fast.ops import LossOptions
from wavalign_fast.train.objective import find_loss_ids
from wavalign_fast.train.token_blocks import count_tables, lay_out, step_rows

from .audio_cases import close
from .golden import GOLDEN

BLANK, TEXT_END, MEDIA_END = 463, 464, 460
DELAY, LAMBDA = 6, 0.25
REWARDS = torch.tensor([[1.0, 3.0], [2.0, -1.0]], dtype=torch.float64)
TARGETS = [("The answer", [1, 2, 3]), ("Yes", None), (None, [4, 5])]


@pytest.fixture(scope="module")
def case():
    return load_family(GOLDEN / "kimi_audio", torch.float64)


@pytest.fixture(scope="module")
def streams(case):
    return TwoStreams(case.files.layout)


@pytest.fixture(scope="module")
def heard(case, streams):
    """A prompt with a clip of three codes and vectors: both streams, its list, and the vectors."""
    messages = [{"role": "user", "content": "Say<|audio|> it."}]
    prompt = kimi_audio.prompt(case.files, messages, [Audio(codes=[7, 8, 9], positions=[4])])
    vectors = torch.randn(4, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    table = PromptEmbeddings(streams.layout.vocab_size)
    ids = streams.prompt(prompt)
    (span,) = prompt.spans
    own = slice(2 * span.first + 1, 2 * (span.first + span.count), 2)
    ids[own] = table.ids("clip", 4, lambda: vectors, under=ids[own])[:3]
    return prompt, tuple(ids), table, vectors[:3]


@pytest.fixture(scope="module")
def answers():
    """Both streams of two groups of two sampled answers; the first text chose a blank itself."""
    make = torch.Generator().manual_seed(5)

    def ids(low, high, count):
        return torch.randint(low, high, (count,), generator=make).tolist()

    found = []
    for number, (text, speech) in enumerate([(4, 3), (1, 6), (9, 2), (2, 1)]):
        audio = [*[BLANK] * DELAY, *ids(480, 560, speech), MEDIA_END]
        said = [*([BLANK] if number == 0 else []), *ids(0, 440, text), TEXT_END]
        found.append(([*said, *[BLANK] * len(audio)][: len(audio)], audio))
    return found


def scored_places(text, audio, *, spoken=True):
    """What counts in each stream: the text up to its end, the audio behind six blanks."""
    last = text.index(TEXT_END) if TEXT_END in text else len(text) - 1
    return range(last + 1), range(DELAY, len(audio)) if spoken else range(0)


def log_probs(model, heard, text, audio):
    """Log-probs of both heads for each position of an answer, [T, V] each."""
    prompt, _, _, vectors = heard
    (span,) = prompt.spans
    states = model(
        torch.tensor([[*prompt.ids, *text]]), torch.tensor([[*prompt.second_ids, *audio]]),
        places=torch.arange(span.first, span.first + span.count), vectors=vectors,
    )  # fmt: skip
    heads = (model.lm_head, model.mimo_output)
    begun = len(prompt.ids) - 1
    return [
        (hidden[0, begun:-1] @ head.weight.T).log_softmax(-1)
        for hidden, head in zip(states, heads, strict=True)
    ]


def plain_loss(case, heard, answers, scope):
    """The definition, row by row: the token means of both heads added up, in float64."""
    deviation = REWARDS.var(1, correction=0, keepdim=True).sqrt() + 1e-6
    advantages = ((REWARDS - REWARDS.mean(1, keepdim=True)) / deviation).flatten()
    policy = anchor = 0.0
    for number, both in enumerate(answers):
        places = scored_places(*both)
        for stream, logp in enumerate(log_probs(case.model, heard, *both)):
            if scope == "text" and stream == 1:
                continue
            tokens = [logp[place, both[stream][place]] for place in places[stream]]
            ratios = [(token - token.detach()).exp() for token in tokens]
            policy = policy - advantages[number] * sum(ratios) / len(ratios) / len(answers)
    for said, codes in TARGETS:
        target = kimi_audio.target(case.files, said, codes)
        both = (target.ids, target.second_ids)
        places = scored_places(*both, spoken=codes is not None)
        for stream, logp in enumerate(log_probs(case.model, heard, *both)):
            tokens = [logp[place, both[stream][place]] for place in places[stream]]
            if tokens:
                anchor = anchor - sum(tokens) / len(tokens) / len(TARGETS)
    return LAMBDA * policy + (1 - LAMBDA) * anchor


def rows_of(case, streams, heard, answers, objective):
    """The rows of the trainer."""
    example = Example(id="0", prompt="", prompt_ids=heard[1], reference="")
    completions = [
        Completion(example=example, ids=tuple(streams.answer(*both)), ended=True)
        for both in answers
    ]
    demonstrations = [
        Demonstration(
            prompt_ids=heard[1],
            answer_ids=tuple(streams.target(kimi_audio.target(case.files, *target))),
        )
        for target in TARGETS
    ]
    return step_rows(
        completions,
        demonstrations,
        loss_ids=find_loss_ids(objective, streams.forced),
        vectors=len(heard[2]),
    )


def objective_of(streams, **settings):
    settings = {"gate": LAMBDA, "options": LossOptions(backend="reference")} | settings
    return TwoHeadObjective(streams.layout, streams.rows, **settings)


def gradients(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize(
    ("scope", "attention"), [("text", "sdpa"), ("all", "sdpa"), ("all", "varlen")]
)
def test_gradients_are_those_of_the_plain_definition(
    case, streams, heard, answers, scope, attention
):
    model = case.model
    model.zero_grad()
    wanted = plain_loss(case, heard, answers, scope)
    wanted.backward()
    wanted_gradients = gradients(model)

    objective = objective_of(streams, policy_scope=scope)
    rows = rows_of(case, streams, heard, answers, objective)
    normalisers = objective.normalisers(count_tables(rows).batch(REWARDS))
    packed = attention == "varlen"
    loss = terms = 0.0
    model.zero_grad()
    set_attention(model, attention)
    try:
        for kind in (True, False):
            own = [row for row in rows if row.is_rollout is kind]
            block = lay_out(own, streams.forced, packed=packed)
            part = StreamBlock.of(heard[2].fill(block.ids), streams)
            out = objective(
                part.hidden_states(model),
                heads_of(model),
                block.tables.batch(REWARDS),
                rl_weight=LAMBDA,
                normalisers=normalisers,
            )
            out.loss.backward()
            loss += float(out.loss.detach())
            terms += LAMBDA * float(out.policy_loss) + (1 - LAMBDA) * float(out.anchor_loss)
            close(out.metrics["sft_loss"], out.anchor_loss)
    finally:
        set_attention(model, "sdpa")
    # Qwen2's norms round to float32 inside, in blocks as alone, but not by the same sums. The
    # gradient of the blank's embedding is a sum over most positions.
    close(torch.tensor(loss, dtype=torch.float64), wanted, atol=1e-6)
    assert terms == pytest.approx(loss, abs=1e-9)
    for name, gradient in gradients(model).items():
        close(gradient, wanted_gradients[name], atol=2e-5)


def test_denominators_count_a_demonstration_once(case, streams, heard, answers):
    objective = objective_of(streams)
    rows = rows_of(case, streams, heard, answers, objective_of(streams, policy_scope="all"))
    counts = objective.normalisers(count_tables(rows).batch(torch.zeros(2, 2)))
    # Each head alone has a label in two demonstrations or three; together they are three.
    assert [float(n) for n in (counts.policy, counts.anchor, counts.rollouts)] == [4, 3, 4]
    tokens = objective_of(streams, normalisation="token", policy_scope="all")
    counts = tokens.normalisers(count_tables(rows).batch(torch.zeros(2, 2)))
    scored = sum(len(places) for both in answers for places in scored_places(*both))
    assert float(counts.policy) == scored


def test_forced_ids_are_in_no_row_and_rows_end_with_what_is_scored(case, streams, heard, answers):
    objective = objective_of(streams)
    rows = rows_of(case, streams, heard, answers, objective)
    for row, (text, audio) in zip(rows[:4], answers, strict=True):
        last = scored_places(text, audio)[0][-1]
        assert row.answer[-1] == text[last] and len(row.answer) == 2 * last + 1
    tables = lay_out(rows[:4], streams.forced).tables
    used = tables.policy_row >= 0
    assert not (tables.targets[used] == streams.forced).any()
    assert int((tables.targets[used] == BLANK).sum()) == 1, "a blank that the text chose"


def test_a_list_is_both_streams_again(case, streams, answers):
    for text, audio in answers:
        ids = streams.answer(text, audio)
        assert streams.apart(ids) == (text, audio)
        assert ids[-1] in streams.ends
    prompt = kimi_audio.prompt(case.files, [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "So?"},
    ], [])  # fmt: skip
    ids, places = streams.prompt(prompt), streams.history(prompt)
    assert [ids[place] for place in places] == [i for i in prompt.labels if i >= 0]


def test_a_model_of_one_head_is_refused(streams):
    class OneHead(torch.nn.Module):
        def get_output_embeddings(self):
            return torch.nn.Linear(2, 560, bias=False)

    with pytest.raises(UserError, match=r"560 and 0 rows .* wanted 560"):
        streams.check_model(OneHead())


def test_ratios_of_whole_rollouts_are_refused(streams):
    with pytest.raises(ValueError, match="'sequence' given for two heads"):
        objective_of(streams, importance_sampling_level="sequence")


def test_two_heads_are_two_calls_of_the_loss_over_their_own_rows():
    """Boundaries of the second head have their class there, and an empty head adds nothing."""
    layout = ModalityLayout(vocab_size=8, speech=((6, 8),), boundary=(5,), eos=(4,), eos_as="text")
    objective = TwoHeadObjective(layout, 4, policy_scope="speech", gate=1.0)
    second = objective.heads[1].layout
    assert second.classify(torch.arange(4)).tolist() == [0, 1, 1, 1]
    assert objective.heads[0].layout.classify(torch.arange(4)).tolist() == [0] * 4
    make = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(3, 5, generator=make), torch.randn(4, 5, generator=make)
    rewards, row = torch.tensor([[1.0, 2.0]]), torch.tensor([0, 0, 1])
    none = torch.full((3,), -1)
    batch = HybridBatch(torch.tensor([6, 4, 7]), row, none, rewards)
    found = objective(hidden, TwoHeads(head, 2 * head), batch, rl_weight=1.0)
    alone = HybridObjective(second, policy_scope="speech", gate=1.0)
    own = HybridBatch(torch.tensor([2, 0, 3]), row, none, rewards)
    wanted = alone(hidden, 2 * head, own)
    close(found.loss, wanted.loss)
    close(found.logp, wanted.logp)
    assert float(found.metrics["policy_speech_tokens"]) == 2


def test_a_blank_that_the_text_chose_is_a_decision(case):
    layout = case.files.layout
    text = [BLANK, 7, BLANK, TEXT_END, BLANK, TEXT_END, BLANK, BLANK]
    audio = [MEDIA_END, *[BLANK] * 5, BLANK, MEDIA_END]
    chosen = decisions(layout, text, audio)
    assert chosen == ([True] * 4 + [False] * 4, [False] * 6 + [True] * 2)
    assert decisions(layout, text, audio, speech=False) == (chosen[0], [False] * 8)
    with pytest.raises(ValueError, match="8 text ids and 7 audio ids"):
        decisions(layout, text, audio[1:])


def test_recomputed_activations_give_the_same_gradients(case, heard, answers):
    from wavalign_fast.models import recompute_activations

    model = kimi_audio.build(case.files.config, torch.float64)
    model.load_state_dict(case.model.state_dict())
    inputs = [torch.tensor([ids]) for ids in answers[0]]
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
