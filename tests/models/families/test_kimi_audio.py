"""Kimi-Audio: two streams and two heads as published, prompts and answers, what does not fit."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from wavalign_fast.errors import UserError
from wavalign_fast.losses.layout import SPEECH, TEXT
from wavalign_fast.models.families import kimi_audio
from wavalign_fast.models.families.checkpoint import load_family, open_family, weight_table
from wavalign_fast.models.families.interface import IGNORE, Audio, AudioSpan, DialogueOptions
from wavalign_fast.models.families.kimi_streams import decisions
from wavalign_fast.models.families.registry import find_family
from wavalign_fast.models.meta_weights import weights_on_meta
from wavalign_fast.models.prompt_audio.whisper import KimiAdaptor
from wavalign_fast.rollout.two_streams import HeardPrompt, sample_two_streams

from .audio_cases import close, loaded
from .golden import GOLDEN

DIRECTORY = GOLDEN / "kimi_audio"
BLANK, TEXT_END, MEDIA_BEGIN, MEDIA_END, END, FIRST = 463, 464, 458, 460, 442, 480
USER, ASSISTANT, CT, CTD = 467, 468, 472, 473


@pytest.fixture(scope="module")
def golden():
    return loaded("kimi_audio")


def files(**options):
    return open_family(DIRECTORY, options=DialogueOptions(**options))[1]


def codes_of(expected, row):
    """The codes that are heard in a golden row, audio by audio."""
    ids, heard = expected[f"row.{row}.audio_ids"][0], expected[f"row.{row}.continuous_mask"][0]
    places = heard.nonzero().flatten().tolist()
    audios = []
    for place in places:
        if place - 1 not in places:
            audios.append([])
        audios[-1].append(int(ids[place]) - FIRST)
    return audios


def vectors_of(case, expected, row):
    adaptor = KimiAdaptor(40, 48, 1e-6)
    prefix = "model.vq_adaptor."
    stored = kimi_audio.stored_tensors(DIRECTORY, (prefix,))
    adaptor.load_state_dict({name.removeprefix(prefix): v for name, v in stored.items()})
    count = len(codes_of(expected, row))
    with torch.no_grad():
        return [adaptor(expected[f"row.{row}.whisper.{k}"]) for k in range(count)]


def dialogue(case, expected, row):
    """Messages and audios of a golden row."""
    vectors = vectors_of(case, expected, row)
    audios = [
        Audio(codes=codes, positions=[len(v)])
        for codes, v in zip(codes_of(expected, row), vectors, strict=True)
    ]
    decode = case.files.tokenizer.decode
    ids = expected[f"row.{row}.text_ids"][0].tolist()
    if row == 0:
        return [{"role": "user", "content": f"{decode(ids[1:11])}<|audio|>"}], audios, vectors
    answer = decode([i for i in ids if i < 440])
    lines = [("user", "<|audio|>"), ("assistant", answer), ("user", "<|audio|>")]
    return [{"role": role, "content": text} for role, text in lines], audios, vectors


@pytest.mark.parametrize("row", [0, 1])
def test_rows_and_both_heads_are_those_of_the_family(golden, row):
    case, expected = golden
    messages, audios, vectors = dialogue(case, expected, row)
    prompt = case.family.prompt(case.files, messages, audios)
    text, audio = list(prompt.ids), list(prompt.second_ids)
    if row == 0:
        said = case.files.tokenizer.decode(expected["row.0.text_ids"][0, 25:31])
        codes = (expected["row.0.audio_ids"][0, 31:43] - FIRST).tolist()
        target = case.family.target(case.files, said, codes)
        text, audio = text + target.ids, audio + target.second_ids
        assert target.labels == [*target.ids[:7], *[IGNORE] * 12]
        assert target.second_labels == [*[IGNORE] * 6, *target.second_ids[6:]]
    assert text == expected[f"row.{row}.text_ids"][0].tolist()
    assert audio == expected[f"row.{row}.audio_ids"][0].tolist()

    _, _, places, taken = HeardPrompt.of(prompt, vectors)
    assert places.tolist() == expected[f"row.{row}.continuous_mask"][0].nonzero()[:, 0].tolist()
    with torch.no_grad():
        states = case.model(
            torch.tensor([text]), torch.tensor([audio]), places=places, vectors=taken
        )
        for name, hidden, head in [
            ("text", states.last_hidden_state, case.model.lm_head),
            ("audio", states.second_hidden_state, case.model.mimo_output),
        ]:
            close(hidden, expected[f"row.{row}.{name}.hidden"])
            close(head(hidden), expected[f"row.{row}.{name}.logits"])


def test_greedy_answers_are_those_of_the_published_loop(golden):
    case, expected = golden
    heard = []
    for row in (0, 1):
        messages, audios, vectors = dialogue(case, expected, row)
        prompt = case.family.prompt(case.files, messages, audios)
        heard.append(HeardPrompt.of(prompt, vectors))
    assert len(heard[0].text) == int(expected["gen.prompt_length"])
    settings = {"max_new_tokens": 20, "temperature": 0.0}
    layout = case.files.layout
    # Beside another prompt and twice: padding and groups change nothing.
    batch = sample_two_streams(case.model, heard[::-1], layout, group_size=2, **settings)
    alone = sample_two_streams(case.model, heard[:1], layout, **settings)
    for sampled, number in ((alone, 0), (batch, 2), (batch, 3)):
        assert sampled.text[number] == expected["gen.text"].tolist()
        assert sampled.audio[number] == expected["gen.audio"].tolist()


def test_sampled_ids_have_the_log_probs_of_both_heads(golden):
    case, expected = golden
    messages, audios, vectors = dialogue(case, expected, 0)
    prompt = case.family.prompt(case.files, messages, audios)
    heard = HeardPrompt.of(prompt, vectors)
    draws = torch.rand(3, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sampled = sample_two_streams(
        case.model, [heard], case.files.layout, group_size=3, max_new_tokens=12,
        temperature=0.7, draws=draws,
    )  # fmt: skip
    assert len({tuple(ids) for ids in sampled.text}) == 3
    places, taken = heard.places, heard.vectors
    for text, audio, *logps in zip(*sampled, strict=True):
        with torch.no_grad():
            states = case.model(
                torch.tensor([[*prompt.ids, *text]]), torch.tensor([[*prompt.second_ids, *audio]]),
                places=places, vectors=taken,
            )  # fmt: skip
        heads = (case.model.lm_head, case.model.mimo_output)
        for ids, hidden, head, found, chosen in zip(
            (text, audio), states, heads, logps, decisions(case.files.layout, text, audio),
            strict=True,
        ):  # fmt: skip
            logits = head(hidden[0, len(prompt.ids) - 1 : -1]) / 0.7
            wanted = logits.log_softmax(1)[torch.arange(len(ids)), ids]
            close(found, torch.where(torch.tensor(chosen), wanted, 0.0))


class Scripted(torch.nn.Module):
    """Stands for the model: step t's most likely ids are ``text[t]`` and ``audio[t]``."""

    def __init__(self, text, audio):
        super().__init__()
        self.script, self.step, self.device = (text, audio), -1, torch.device("cpu")
        self.fed = []
        self.lm_head = self.mimo_output = torch.nn.Identity()
        self.embedding = torch.nn.Embedding(560, 1)

    def get_input_embeddings(self):
        return self.embedding

    def new_caches(self):
        return ()

    def forward(self, text, audio, **_):
        self.fed.append((text[0, -1].item(), audio[0, -1].item()))
        self.step += 1
        rows = [ids[min(self.step, len(ids) - 1)] for ids in self.script]
        logits = [torch.nn.functional.one_hot(torch.tensor([[i]]), 560).float() for i in rows]
        return logits


@pytest.mark.parametrize(
    ("speech", "text", "audio", "wanted_text", "wanted_audio"),
    [
        # Text ends first: blanks follow. Six blanks stand before the speech, which ends all.
        (True, [7, TEXT_END, 9], [500] * 7 + [501, MEDIA_END, 502],
         [7, TEXT_END] + [BLANK] * 7, [BLANK] * 6 + [500, 501, MEDIA_END]),
        # An end among the forced positions does not count.
        (True, [7], [MEDIA_END] * 6 + [500, END], [7] * 8, [BLANK] * 6 + [500, END]),
        (False, [7, 8, TEXT_END, 9], [500], [7, 8, TEXT_END], [BLANK] * 3),
    ],
)  # fmt: skip
def test_forced_ids_are_filled_in(speech, text, audio, wanted_text, wanted_audio):
    opened = files()
    prompt = kimi_audio.prompt(opened, [{"role": "user", "content": "Hi."}], [])
    model = Scripted(text, audio)
    sampled = sample_two_streams(
        model, [HeardPrompt.of(prompt)], opened.layout, max_new_tokens=15, temperature=0.0,
        speech=speech,
    )  # fmt: skip
    assert sampled.text == [wanted_text] and sampled.audio == [wanted_audio]
    assert model.fed[1:] == list(zip(wanted_text[:-1], wanted_audio[:-1], strict=True))
    chosen = decisions(opened.layout, wanted_text, wanted_audio, speech=speech)
    assert chosen[0] == [index != BLANK for index in wanted_text]
    assert chosen[1] == [index != BLANK for index in wanted_audio]


def test_prompts_that_cannot_be_sampled_are_refused(golden):
    case, expected = golden
    messages, audios, vectors = dialogue(case, expected, 0)
    prompt = case.family.prompt(case.files, messages, audios)
    layout, settings = case.files.layout, {"max_new_tokens": 1, "temperature": 0.0}
    for given, message in [
        ([], "audio 0 has 0 vectors, wanted 9 or more"),
        ([vectors[0][:8]], "audio 0 has 8 vectors, wanted 9 or more"),
    ]:
        with pytest.raises(UserError, match=message):
            HeardPrompt.of(prompt, given)
    for second, message in [
        ([560], "holds the id 560, wanted 0 <= id < 560"),
        ([], "is empty, wanted at least one id"),
    ]:
        with pytest.raises(ValueError, match=message):
            sample_two_streams(case.model, [HeardPrompt([1], second)], layout, **settings)
    with pytest.raises(ValueError, match=r"no draws at temperature 1\.0"):
        sample_two_streams(case.model, [HeardPrompt.of(prompt, vectors)], layout, max_new_tokens=1)
    assert sample_two_streams(case.model, [], layout, **settings).text == []


def test_a_directory_is_found_and_its_ids_have_classes():
    assert find_family(DIRECTORY) is kimi_audio
    assert kimi_audio.detect({"model_type": "qwen2", "kimia_token_offset": 7}, ()) == 2
    assert kimi_audio.detect({"model_type": "qwen2"}, ()) == 0
    layout = files().layout
    everything = torch.arange(560)
    assert layout.stream.classify(everything).eq(TEXT).all()
    assert layout.second.classify(everything).eq(SPEECH).all()
    assert (layout.first_code, layout.codebook_size, layout.stop) == (480, 80, (460, 442))


def test_special_tokens_that_no_file_lists_are_those_of_the_published_class(tmp_path):
    directory = tmp_path / "kimi"
    shutil.copytree(GOLDEN / "kimi_audio", directory)
    listed = open_family(directory)[1]
    (directory / "tokenizer_config.json").write_text("{}")
    files = open_family(directory)[1]
    assert files.layout == listed.layout
    text = "The answer is 42.\n"
    assert files.tokenizer(text)["input_ids"] == listed.tokenizer(text)["input_ids"]
    ids = files.tokenizer.convert_tokens_to_ids
    assert ids("<|reserved_token_0|>") == 440 + 5 and ids("<|reserved_token_20|>") == 440 + 34


def test_turns_begin_and_end_where_the_role_changes():
    opened, silent = files(), files(speech=False)
    lines = [("system", "Be kind."), ("user", "Hi<|audio|>"), ("user", "<|audio|>"),
             ("assistant", "Yes<|audio|>"), ("user", "<|audio|>now")]  # fmt: skip
    messages = [{"role": role, "content": text} for role, text in lines]
    audios = [Audio(codes=[1, 2], positions=[3]), Audio(codes=[3], positions=[1]),
              Audio(codes=[4, 5, 6]), Audio(codes=[7], positions=[1])]  # fmt: skip
    prompt = kimi_audio.prompt(opened, messages, audios)
    kind, hi, now = (opened.tokenizer(t)["input_ids"] for t in ("Be kind.", "Hi", "now"))
    answer = kimi_audio.target(opened, "Yes", [4, 5, 6])
    wanted = [USER, *[BLANK] * (len(kind) + len(hi)), MEDIA_BEGIN, 481, 482, MEDIA_END,
              MEDIA_BEGIN, 483, MEDIA_END, CTD, END, ASSISTANT, *answer.second_ids, END,
              USER, MEDIA_BEGIN, 487, MEDIA_END, *[BLANK] * len(now), END, ASSISTANT]  # fmt: skip
    assert prompt.second_ids == wanted
    said = [i for i in prompt.ids if i != BLANK]
    assert said == [*kind, *hi, *[i for i in answer.ids if i != BLANK], *now]
    begin = wanted.index(ASSISTANT) + 1
    end = begin + len(answer.ids)
    assert prompt.labels[begin:end] == answer.labels
    assert prompt.second_labels[begin:end] == answer.second_labels
    outside = prompt.labels[:begin] + prompt.labels[end:] + prompt.second_labels[:begin]
    assert set(outside + prompt.second_labels[end:]) == {IGNORE}
    first = wanted.index(481)
    assert prompt.spans == (
        AudioSpan(audio=0, first=first, count=2),
        AudioSpan(audio=1, first=first + 4, count=1),
        AudioSpan(audio=3, first=wanted.index(487), count=1),
    )
    assert kimi_audio.prompt(silent, messages[1:3], audios[:2]).second_ids[-3] == CT


def test_an_answer_of_history_may_have_one_stream():
    opened = files()
    user = {"role": "user", "content": "Hi"}
    begun = len(kimi_audio.prompt(opened, [user], []).ids)
    yes = opened.tokenizer("Yes")["input_ids"]
    written = [user, {"role": "assistant", "content": "Yes"}, user]
    prompt = kimi_audio.prompt(opened, written, [])
    assert prompt.ids[begun : begun + len(yes) + 1] == [*yes, BLANK]
    assert prompt.second_ids[begun : begun + len(yes) + 1] == [*[BLANK] * len(yes), END]
    assert [label for label in prompt.labels if label != IGNORE] == yes
    spoken = [user, {"role": "assistant", "content": "<|audio|>"}, user]
    prompt = kimi_audio.prompt(opened, spoken, [Audio(codes=[4, 5])])
    assert prompt.second_ids[begun : begun + 5] == [MEDIA_BEGIN, 484, 485, MEDIA_END, END]
    scored = [label for label in prompt.second_labels if label != IGNORE]
    assert scored == [484, 485, MEDIA_END] and not prompt.spans


def test_answers_are_taken_apart():
    opened = files()
    text = opened.tokenizer("The answer")["input_ids"]
    target = kimi_audio.target(opened, "The answer", list(range(9)))
    answer = kimi_audio.split(opened, [*target.ids, 5], [*target.second_ids, 500])
    assert (answer.text, answer.codes, answer.ended) == (text, list(range(9)), True)
    cut = kimi_audio.split(opened, target.ids[:-1], target.second_ids[:-1])
    assert (cut.text, cut.codes, cut.ended) == (text, list(range(9)), False)
    silent = kimi_audio.target(opened, "The answer", None)
    assert silent.labels == silent.ids == [*text, TEXT_END]
    assert silent.second_ids == [BLANK] * len(silent.ids)
    assert set(silent.second_labels) == {IGNORE}
    answer = kimi_audio.split(opened, silent.ids, silent.second_ids)
    assert (answer.text, answer.codes, answer.ended) == (text, [], True)
    # Ids below the codes in the audio and above the text in the text are neither.
    assert kimi_audio.split(opened, [7, 500, 441], [3, 481]).text == [7]
    assert kimi_audio.split(opened, [7], [3, 481]).codes == [1]


@pytest.mark.parametrize(
    ("text", "codes", "message"),
    [
        (None, None, "neither text nor codes"), ("Yes", [], "no codes"),
        ("Yes", [80], "code 80, wanted 0 to 79"),
        ("The answer is no. The answer", [1], "for 1 codes, wanted at most 7: the end of the sp"),
    ],
)  # fmt: skip
def test_answers_that_do_not_fit_are_refused(text, codes, message):
    with pytest.raises(UserError, match=message):
        kimi_audio.target(files(), text, codes)


@pytest.mark.parametrize(
    ("content", "audios", "message"),
    [
        ("<|audio|>", [Audio(codes=[1, 2], positions=[1])], r"\(1,\) and 2 codes, wanted"),
        ("<|audio|>", [Audio(positions=[1])], "audio 0 has no codes"),
        ("<|audio|>", [], "1 tags .* for 0 audios"),
        ("<|im_msg_end|>", [], "which is no text"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(content, audios, message):
    with pytest.raises(UserError, match=message):
        kimi_audio.prompt(files(), [{"role": "user", "content": content}], audios)


def copied(tmp_path, change):
    directory = tmp_path / "kimi"
    shutil.copytree(DIRECTORY, directory)
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((directory / name).read_text())
        change(content)
        (directory / name).write_text(json.dumps(content))
    return directory


def swapped(content):
    decoder = content.get("added_tokens_decoder")
    if decoder:
        decoder["460"], decoder["461"] = decoder["461"], decoder["460"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped, r"<\|im_media_end\|> at id 461, wanted 460, 20 behind"),
        (lambda c: c.get("added_tokens_decoder", {}).pop("464", None),
         r"no token <\|im_kimia_text_eos\|>"),
        (lambda c: c.update(kimia_token_offset=479), "kimia_token_offset is 479, wanted one"),
        (lambda c: c.update(kimia_token_offset=560), "below vocab_size 560"),
        (lambda c: c.update(vocab_size=470), "longer than the embedding"),
        (lambda c: c.update(kimia_media_end=461), "kimia_media_end is 461, wanted 460"),
        (lambda c: c.update(kimia_mimo_layers=1), r"not known: model\.mimo_layers\.1"),
        (lambda c: c.update(kimia_mimo_layers=3), r"missing: model\.mimo_layers\.2"),
        (lambda c: c.update(kimia_adaptor_input_dim=44), r"vq_adaptor\.layers\.0\.weight \(48, 40"),
        (lambda c: c.update(kimia_mimo_transformer_from_layer_index=4), "5 shared layers of 4"),
        (lambda c: c.update(tie_word_embeddings=True), "tie_word_embeddings is true"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load_family(copied(tmp_path, change))


def test_the_encoder_is_read_from_whispers_folder(tmp_path):
    directory = copied(tmp_path, lambda _: None)
    opened = open_family(directory)[1]
    with pytest.raises(UserError, match="whisper-large-v3"):
        kimi_audio.audio_encoder(opened)
    config = {
        "d_model": 10, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 12,
        "num_mel_bins": 80, "max_source_positions": 1500, "model_type": "whisper",
    }  # fmt: skip
    whisper = kimi_audio.KimiAudioEncoder(config, opened.config).encoder.state_dict()
    (directory / "whisper-large-v3").mkdir()
    (directory / "whisper-large-v3" / "config.json").write_text(json.dumps(config))
    save_file(
        {f"model.encoder.{name}": value.contiguous() for name, value in whisper.items()},
        directory / "whisper-large-v3" / "model.safetensors",
    )
    first = kimi_audio.audio_encoder(opened)
    (piece,) = first.encode(torch.zeros(4000))
    assert piece.shape == (4, 48)

    # The makers' export of a fine-tuned Whisper, and what their fine-tuning saves.
    for folder, prefix, change in (
        (directory / "whisper-large-v3", "encoder.", 1.0),
        (directory, "whisper_model.speech_encoder.", 2.0),
    ):
        path = folder / "model.safetensors"
        own = {} if change == 1.0 else load_file(path)
        tuned = {f"{prefix}{name}": value + change for name, value in whisper.items()}
        save_file(own | tuned, path)
        found = kimi_audio.audio_encoder(opened).encoder.state_dict()
        for name, value in whisper.items():
            assert torch.equal(found[name], value + change), name


def test_full_sizes_have_the_right_number_of_weights():
    config = {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6,
        "vocab_size": 168448, "kimia_mimo_layers": 6, "kimia_adaptor_input_dim": 5120,
        "kimia_mimo_transformer_from_layer_index": 21,
    }  # fmt: skip
    with weights_on_meta():
        model = kimi_audio.build(config, torch.bfloat16)
    layer = 3584 * 4608 + 4608 + 3584**2 + 3 * 3584 * 18944 + 2 * 3584
    count = sum(weight.numel() for weight in model.parameters())
    assert count == 34 * layer + 3 * 168448 * 3584 + 2 * 3584
    table = weight_table(model, kimi_audio, config)
    stored = {piece.stored for piece in table.pieces.values()}
    assert "model.layers.27.mlp.up_proj.weight" in stored and len(stored) == 34 * 12 + 5
    assert table.pieces["upper.layers.0.mlp.up_proj.weight"].stored.startswith("model.layers.22.")
    assert table.aside["model.vq_adaptor.layers.0.weight"] == (3584, 5120)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_it_has_the_ids_of_the_published_model():
    names = {place: token for token, place in kimi_audio.SPECIAL.values()} | {0: "[BOS]"}
    vocab = {f"t{number}": number for number in range(151643)}
    vocab |= {names.get(place, f"<|r{place}|>"): 151643 + place for place in range(421)}
    tokenizer = SimpleNamespace(get_vocab=lambda: vocab, added_tokens_decoder={})
    config = {"vocab_size": 168448, "kimia_token_offset": 152064}
    layout = kimi_audio.layout(config, tokenizer)
    named = layout.named
    assert (named["text_blank"], named["text_eos"]) == (151666, 151667)
    assert (named["media_begin"], named["media_end"]) == (151661, 151663)
    assert (layout.first_code, layout.codebook_size) == (152064, 16384)
