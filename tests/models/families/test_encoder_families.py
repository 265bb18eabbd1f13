"""Step-Audio 2 and Covo-Audio: golden rows, prompts, answers and what does not fit."""

import functools
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from wavalign_fast.errors import UserError
from wavalign_fast.losses.layout import SPEECH, TEXT
from wavalign_fast.models.families import covo_audio, step_audio_2
from wavalign_fast.models.families.checkpoint import load_family, open_family, weight_table
from wavalign_fast.models.families.encoders import load_audio_encoder
from wavalign_fast.models.families.interface import IGNORE, Audio, DialogueOptions
from wavalign_fast.models.families.registry import find_family
from wavalign_fast.models.meta_weights import weights_on_meta

from .audio_cases import close, encoded, hidden_and_logits, loaded, with_vectors
from .golden import GOLDEN

STEP, COVO = "step_audio_2", "covo_audio"
RATIO = {STEP: (2, 3), COVO: (3, 3)}
MODULES = {STEP: step_audio_2, COVO: covo_audio}

ROWS = [
    (STEP, "row.0", (0,), ["system: You are a helpful assistant.", "user: <|audio|>"],
     ("The answer", [5, 9, 3, 1])),
    (STEP, "row.1", (1, 2), ["user: <|audio|>Say it again.<|audio|>"], None),
    (COVO, "0", (0,), ["system: You are a voice assistant.", "user: <|audio|>"],
     ("The answer is", [3, 9, 14, 1, 70])),
    (COVO, "1", (1,), ["system: You are a voice assistant.", "user: <|audio|>"],
     ("The answer is", [3, 9, 14, 1, 70])),
]  # fmt: skip


def files(family, **options):
    return open_family(GOLDEN / family, options=DialogueOptions(**options))[1]


def messages(lines):
    return [dict(zip(("role", "content"), line.split(": ", 1), strict=True)) for line in lines]


@functools.cache
def golden(family):
    return loaded(family, options=DialogueOptions(ratio=RATIO[family]))


@pytest.fixture(params=[STEP, COVO])
def case(request):
    return (request.param, *golden(request.param))


@pytest.mark.parametrize(("family", "row", "waves", "lines", "answer"), ROWS)
def test_rows_and_logits_are_those_of_the_family(family, row, waves, lines, answer):
    loaded_case, expected = golden(family)
    wave = "audio.{}.wave_int16" if family == STEP else "{}.wave_int16"
    pieces = [encoded(loaded_case, expected[wave.format(n)]) for n in waves]
    audios = [Audio(positions=[len(piece) for piece in own]) for own in pieces]

    prompt = loaded_case.family.prompt(loaded_case.files, messages(lines), audios)
    ids = list(prompt.ids)
    if answer is not None:
        target = loaded_case.family.target(loaded_case.files, *answer)
        assert target.labels == target.ids
        ids += target.ids
    assert ids == expected[f"{row}.input_ids"][0].tolist()
    assert prompt.labels == [IGNORE] * len(prompt.ids)

    vectors = [torch.cat(own) for own in pieces]
    embedded = with_vectors(loaded_case.model, ids, prompt.spans, vectors)
    hidden, logits = hidden_and_logits(loaded_case.model, embedded)
    close(hidden, expected[f"{row}.hidden"])
    close(logits, expected[f"{row}.logits"])


def test_only_plus_of_the_codes_families_has_an_encoder():
    for family in ("vita_audio", "glm4_voice"):
        assert load_audio_encoder(*open_family(GOLDEN / family)) is None
    encoder = load_audio_encoder(*open_family(GOLDEN / "vita_audio_plus"))
    expected = load_file(GOLDEN / "vita_audio_plus" / "golden.safetensors")
    for number in range(3):
        (piece,) = encoder.encode(expected[f"audio.{number}.wave"])
        close(piece, expected[f"audio.{number}.projected"])


def test_a_directory_is_found(case):
    name = case[0]
    assert find_family(GOLDEN / name) is MODULES[name]
    (first, second) = [("audio_encoder_config", "text_config"), ("llm_config", "encoder_config")][
        name == COVO
    ]
    assert MODULES[name].detect({first: {}, second: {}}, ()) == 2
    assert MODULES[name].detect({first: {}}, ()) == 0
    assert MODULES[name].codec(case[1].files) == name


def test_ids_have_the_right_class(case):
    name, loaded_case, _ = case
    layout = loaded_case.files.layout
    first, rows = (438, 514) if name == STEP else (428, 499)
    classes = layout.stream.classify(torch.arange(rows))
    speech = range(438, 504) if name == STEP else range(428, 499)
    boundary = (434, 435) if name == STEP else ()
    for index, kind in enumerate(classes.tolist()):
        assert kind == (SPEECH if index in speech or index in boundary else TEXT)
    assert layout.first_code == first
    assert layout.codebook_size == (65 if name == STEP else 71)
    assert layout.stop == ((423,) if name == STEP else (402, 400))


def test_answers_are_taken_apart(case):
    name, loaded_case, _ = case
    files, family = loaded_case.files, loaded_case.family
    text = files.tokenizer("The answer is", add_special_tokens=False)["input_ids"]
    codes = list(range(7))
    ids = family.target(files, "The answer is", codes).ids
    answer = family.split(files, [*ids, *text])  # nothing behind the end counts
    assert (answer.text, answer.codes, answer.ended) == (text, codes, True)
    cut = family.split(files, ids[:-1])
    assert (cut.codes, cut.ended) == (codes, False)
    if name == STEP:
        assert family.split(files, [438, 503, 439, 503]).codes == [0, 1]


@pytest.mark.parametrize("family", [STEP, COVO])
def test_history_is_the_row_and_its_answers_are_labels(family):
    opened, module = files(family, ratio=RATIO[family]), MODULES[family]
    lines = ["user: Hello.", "assistant: The answer<|audio|>", "user: Say it."]
    audio = Audio(codes=[5, 9, 3, 1])
    prompt = module.prompt(opened, messages(lines), [audio])
    first = module.prompt(opened, messages(lines[:1]), [])
    answer = module.target(opened, "The answer", [5, 9, 3, 1])
    begun = len(first.ids)
    assert prompt.ids[: begun + len(answer.ids)] == first.ids + answer.ids
    scored = [label for label in prompt.labels if label != IGNORE]
    assert scored == answer.ids and not prompt.spans
    assert prompt.labels[begun : begun + len(answer.ids)] == answer.ids


def test_step_asks_for_speech_by_a_token():
    spoken, silent = files(STEP, ratio=(2, 3)), files(STEP, ratio=(2, 3), speech=False)
    line = messages(["user: Hello."])
    start, end, stop = 434, 435, 423
    prompt = step_audio_2.prompt(silent, line, [])
    assert step_audio_2.prompt(spoken, line, []).ids == [*prompt.ids, start]
    text = silent.tokenizer("The answer", add_special_tokens=False)["input_ids"]
    assert step_audio_2.target(silent, "The answer", None).ids == [*text, stop]
    with_speech = step_audio_2.target(spoken, "The answer", [5]).ids
    assert step_audio_2.target(silent, "The answer", [5]).ids == [start, *with_speech]
    assert step_audio_2.target(spoken, None, [5, 6]).ids == [443, 444, end, stop]


def test_step_speaks_four_codes_for_an_id_of_text_and_pads_what_has_ended():
    opened, pad, filler = files(STEP), 433, 438 + 65
    named = opened.layout.named
    assert (named["<tts_pad>"], named["padding"]) == (pad, filler)
    text = opened.tokenizer("The answer", add_special_tokens=False)["input_ids"]
    assert len(text) == 3
    end = [435, 423]

    def ids(*codes):
        return step_audio_2.target(opened, "The answer", codes).ids

    first = opened.layout.first_code
    speech = [first + code for code in range(14)]
    spoken = [text[0], *speech[:4], text[1], *speech[4:8], text[2], *speech[8:12], pad]
    spoken += [*speech[12:], *end]
    assert ids(*range(14)) == spoken
    assert step_audio_2.split(opened, spoken).text == text
    assert ids(0, 1, 2) == [text[0], *speech[:3], *text[1:], *end]
    assert ids(0) == [text[0], speech[0], filler, filler, *text[1:], *end]
    assert step_audio_2.split(opened, ids(0)).codes == [0]


def test_step_needs_a_ratio_where_the_tokenizer_has_no_padding_of_text():
    opened = files(STEP)
    named = {key: value for key, value in opened.layout.named.items() if key != "<tts_pad>"}
    bare = replace(opened, layout=replace(opened.layout, named=named))
    with pytest.raises(UserError, match=r"no <tts_pad>.*: give the ratio"):
        step_audio_2.target(bare, "The answer", [5])
    step_audio_2.target(bare, "The answer", None)


def test_covo_speaks_15_codes_for_5_ids_of_text():
    opened = files(COVO)
    text = opened.tokenizer("The answer is The answer is", add_special_tokens=False)["input_ids"]
    codes = list(range(20))
    ids = covo_audio.target(opened, "The answer is The answer is", codes).ids
    speech = [428 + code for code in codes]
    assert ids == [*text[:5], *speech[:15], *text[5:], *speech[15:], 402]


def test_step_gives_each_piece_its_boundaries():
    opened = files(STEP)
    prompt = step_audio_2.prompt(opened, messages(["user: <|audio|>"]), [Audio(positions=[3, 2])])
    begin = prompt.ids.index(430)
    assert prompt.ids[begin : begin + 9] == [430, 432, 432, 432, 431, 430, 432, 432, 431]
    assert [(s.audio, s.first - begin, s.count, s.offset) for s in prompt.spans] == [
        (0, 1, 3, 0), (0, 6, 2, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("family", [STEP, COVO])
@pytest.mark.parametrize(
    ("lines", "audios", "message"),
    [
        (["user: <|audio|>"], [], "1 tags .* for 0 audios"),
        (["user: <|audio|>"], [Audio(codes=[1])], r"audio 0 has the positions \(\), wanted"),
        (["user: <|audio|>"], [Audio(positions=[0])], r"has the positions \(0,\), wanted"),
        (["user: Hi.", "assistant: Yes."], [], "ends with the role 'assistant'"),
        (["user: Hi.", "assistant: Yes.<|audio|>", "user: Hi."], [Audio()], "no codes"),
        (["user: Hi.", "assistant: <|audio|><|audio|>", "user: Hi."],
         [Audio(codes=[1]), Audio(codes=[2])], "has 2 audios, wanted at most one"),
        (["user: <|im_end|>"], [], r"token <\|im_end\|>, which is no text"),
        (["robot: Hi."], [], "ends with the role 'robot'"),
    ],
)  # fmt: skip
def test_dialogues_that_do_not_fit_are_refused(family, lines, audios, message):
    with pytest.raises(UserError, match=message):
        MODULES[family].prompt(files(family, ratio=(2, 3)), messages(lines), audios)


@pytest.mark.parametrize("family", [STEP, COVO])
def test_answers_that_do_not_fit_are_refused(family):
    opened = files(family, ratio=(2, 3))
    size = opened.layout.codebook_size
    for arguments, message in [
        ((None, None), "neither text nor codes"), (("", None), "neither text nor codes"),
        (("Yes", []), "no codes"), (("Yes", [size]), f"code {size}, wanted 0 to {size - 1}"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            MODULES[family].target(opened, *arguments)


def copied(tmp_path, family):
    directory = tmp_path / family
    shutil.copytree(GOLDEN / family, directory)
    return directory


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rename_token(directory, old, new):
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        path = directory / name
        path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"'))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (STEP, lambda d: rename_token(d, "<audio_7>", "<other>"), "<audio_7> has id missing"),
        (STEP, lambda d: rename_token(d, "<audio_0>", "<other>"), "no token <audio_0>"),
        (STEP, lambda d: rename_token(d, "<audio_end>", "<other>"), "no token <audio_end>"),
        (STEP, lambda d: rename_token(d, "<tts_start>", "<other>"), "no token <tts_start>"),
        (STEP, lambda d: rewrite(d / "config.json", lambda c: c["text_config"].update(
            vocab_size=503)), "longer than the embedding"),
        (STEP, lambda d: rewrite(d / "config.json", lambda c: c["text_config"].update(
            tie_word_embeddings=True)), "tie_word_embeddings is true"),
        (STEP, lambda d: rewrite(d / "config.json", lambda c: c["audio_encoder_config"].update(
            n_audio_layer=3)), r"missing: encoder\.blocks\.2"),
        (STEP, lambda d: rewrite(d / "config.json", lambda c: c["audio_encoder_config"].update(
            llm_dim=40)), r"adapter\.linear2\.bias \(48,\) instead of \(40,\)"),
        (COVO, lambda d: rewrite(d / "config.json", lambda c: c.update(
            audio_token_index=429)), "audio_token_index is 429, wanted 428"),
        (COVO, lambda d: rewrite(d / "config.json", lambda c: c["llm_config"].update(
            vocab_size=428)), "no id is left for codes"),
        (COVO, lambda d: rename_token(d, "<|cAUDIO|>", "<other>"), r"no token <\|cAUDIO\|>"),
        (COVO, lambda d: rewrite(d / "config.json", lambda c: c["llm_config"].update(
            tie_word_embeddings=True)), "tie_word_embeddings is true"),
        (COVO, lambda d: rewrite(d / "config.json", lambda c: c["encoder_config"].update(
            encoder_layers=1)), r"not known: encoder\.layers\.1"),
        (COVO, lambda d: rewrite(d / "config.json", lambda c: c.update(
            adapter_downsample=4)), "adapter_downsample is 4, want 8"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused(tmp_path, family, change, message):
    directory = copied(tmp_path, family)
    change(directory)
    with pytest.raises(UserError, match=message):
        load_family(directory)


def parameters(family, config):
    with weights_on_meta():
        model = family.build(config, torch.bfloat16)
    table = weight_table(model, family, config)
    return sum(weight.numel() for weight in model.parameters()), table


QWEN2_7B = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
}  # fmt: skip
LAYER = 3584 * (3584 + 512 + 512) + 4608 + 3584**2 + 3 * 3584 * 18944 + 2 * 3584


def test_full_sizes_have_the_right_number_of_weights():
    encoder = {
        "n_mels": 128, "n_audio_ctx": 1500, "n_audio_state": 1280, "n_audio_head": 20,
        "n_audio_layer": 32, "llm_dim": 3584, "kernel_size": 3, "adapter_stride": 2,
    }  # fmt: skip
    text = {k: v for k, v in QWEN2_7B.items() if k != "num_key_value_heads"}
    step = {
        "text_config": text | {"vocab_size": 158720, "num_attention_groups": 4},
        "audio_encoder_config": encoder,
    }
    count, table = parameters(step_audio_2, step)
    assert count == 28 * LAYER + 2 * 158720 * 3584 + 3584
    assert table.aside["encoder.blocks.31.mlp.0.weight"] == (5120, 1280)
    whisper = {
        "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120, "num_mel_bins": 128, "max_source_positions": 1500,
    }  # fmt: skip
    covo = {"llm_config": QWEN2_7B | {"vocab_size": 168055}, "encoder_config": whisper}
    count, table = parameters(covo_audio, covo)
    assert count == 28 * LAYER + 2 * 168055 * 3584 + 3584
    assert table.pieces["lm_head.weight"].stored == "llm.lm_head.weight"
    assert table.aside["audio_adapter.downsample_layers.2.linear2.bias"] == (3584,)


class Vocabulary:
    """Stands for a tokenizer of the real size: plain tokens, then the added ones."""

    def __init__(self, plain, added, special=()):
        self.vocab = {f"t{number}": number for number in range(plain)}
        self.vocab |= {name: plain + number for number, name in enumerate(added)}
        self.added_tokens_decoder = {
            self.vocab[name]: SimpleNamespace(special=name in special) for name in added
        }

    def get_vocab(self):
        return self.vocab


QWEN2_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|q{n}|>" for n in range(19))]


def test_step_has_the_ids_of_the_published_model():
    turns = ["<|BOT|>", "<|EOT|>", *(f"<|r{n}|>" for n in range(21))]
    audio = ["<audio_start>", "<audio_end>", "<audio_patch>", "<tts_start>", "<tts_end>"]
    rest = [f"<|s{n}|>" for n in range(3)]
    codes = [f"<audio_{n}>" for n in range(6562)]
    tokenizer = Vocabulary(151643, [*QWEN2_SPECIAL, *turns, *audio, *rest, *codes])
    layout = step_audio_2.layout({"text_config": {"vocab_size": 158720}}, tokenizer)
    named = layout.named
    assert (named["<audio_start>"], named["<audio_patch>"]) == (151688, 151690)
    assert (layout.first_code, layout.codebook_size, named["padding"]) == (151696, 6561, 158257)
    answer = step_audio_2.split(SimpleNamespace(layout=layout), [9, 151696, 158256, 158257, 151690])
    assert (answer.text, answer.codes, answer.ended) == ([9], [0, 6560], False)


def test_covo_has_the_ids_of_the_published_model():
    audio = ["<|c|>", "<|cAUDIO|>", "<|begofcAUDIO|>", "<|endofcAUDIO|>", "<|d|>", "<|e|>"]
    tokenizer = Vocabulary(151643, [*QWEN2_SPECIAL, *audio])
    config = {"llm_config": {"vocab_size": 168055}, "audio_token_index": 151671}
    layout = covo_audio.layout(config, tokenizer)
    assert (layout.first_code, layout.codebook_size) == (151671, 16384)
    assert layout.named["<|cAUDIO|>"] == 151666
    assert layout.stop == (151645, 151643)
