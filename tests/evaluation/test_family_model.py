"""Models of the families' directories: their prompts, sound in them, and their answers."""

import dataclasses
import json
import shutil

import pytest
import torch

from tests.evaluation.test_command import evaluate, write  # noqa: F401
from tests.models.families.golden import GOLDEN, greedy, loaded
from wavalign_fast.errors import UserError
from wavalign_fast.evaluation.talk import Talk
from wavalign_fast.models import TwoStreams
from wavalign_fast.models.families.checkpoint import load_family, read_aside
from wavalign_fast.models.families.dialogue_file import write_dialogue_file
from wavalign_fast.models.families.encoders import load_audio_encoder
from wavalign_fast.models.families.interface import Audio, DialogueOptions
from wavalign_fast.models.families.tiny import make_tiny_checkpoint
from wavalign_fast.models.families.vita_mtp import generate_with_mtp, load_mtp
from wavalign_fast.rollout.two_streams import HeardPrompt, sample_two_streams
from wavalign_fast.speech.channels import to_mono
from wavalign_fast.speech.codecs import open_codec
from wavalign_fast.speech.wave_files import read_wave, write_wave

COUNT = 5


@pytest.fixture
def asked(evaluate, folder):  # noqa: F811
    """Evaluates prompts on a family's directory; returns the responses by id."""
    wave = torch.sin(torch.arange(8000) * 0.3) * torch.linspace(0.1, 0.9, 8000)
    write_wave(folder / "q.wav", wave, 16000)

    def call(name, records, *words):
        write(folder / "p.jsonl", [{"task": "spoken", "id": str(n), **one}
                                   for n, one in enumerate(records)])  # fmt: skip
        status, shown, _ = evaluate("p.jsonl", "--model", GOLDEN / name, "--max-new-tokens", COUNT,
                                    "--dtype", "float32", *words)  # fmt: skip
        if status:
            return shown.err
        lines = (folder / "out" / "responses.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return call


def expected(golden, prompt, vectors=None):
    """The ids that a model says greedily, and their parts, computed without the sampler."""
    model = golden.model
    ids = torch.tensor([prompt.ids])
    embedded = model.get_input_embeddings()(ids)
    for span in prompt.spans:
        embedded[0, span.first : span.first + span.count] = vectors[span.offset :][: span.count]
    said = []
    with torch.no_grad():
        for _ in range(COUNT):
            token = model(inputs_embeds=embedded).logits[:, -1:].argmax(-1)
            said.append(int(token))
            if said[-1] in golden.files.layout.stop:
                break
            embedded = torch.cat([embedded, model.get_input_embeddings()(token)], 1)
    return said


@pytest.mark.parametrize("name", ["vita_audio", "glm4_voice"])
def test_a_text_is_asked_in_the_familys_words(asked, name):
    golden, _ = loaded(name)
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]
    (response,) = asked(name, [{"messages": turns}])
    prompt = golden.family.prompt(golden.files, turns, [])
    assert response["ids"] == expected(golden, prompt)
    said = greedy(golden.model, torch.tensor([prompt.ids]), len(response["ids"]))
    assert response["ids"] == said[0].tolist()
    parts = golden.family.split(golden.files, response["ids"])
    assert response["codes"] == list(parts.codes)
    assert response["text"] == golden.files.tokenizer.decode(parts.text)


def test_sound_becomes_codes_and_answers_become_sound(asked, folder):
    golden, _ = loaded("vita_audio")
    size = golden.files.layout.codebook_size
    codec = ("--codec", "toy", "--codec-option", f"codebook_size={size}")
    (response,) = asked("vita_audio", [{"prompt": "what?", "audio": "q.wav"}], *codec)
    wave, rate = read_wave(folder / "q.wav")
    codes = open_codec({"kind": "toy", "codebook_size": size}).encode(wave, rate).tolist()
    turn = {"role": "user", "content": "<|audio|>"}
    prompt = golden.family.prompt(golden.files, [turn], [Audio(codes=codes)])
    assert response["ids"] == expected(golden, prompt)
    assert (folder / "out" / "wavs.jsonl").exists() == bool(response["codes"])


def test_mtp_layers_take_turns_with_the_model(asked):
    golden, _ = loaded("vita_audio")
    prompt = golden.family.prompt(golden.files, [{"role": "user", "content": "hello"}], [])
    records = [{"prompt": "hello"}]
    (mixed,) = asked("vita_audio", records, "--mtp")
    (plain,) = asked("vita_audio", records, "--redo", "responses")
    aside = read_aside(GOLDEN / "vita_audio", golden.table)
    layers = load_mtp(golden.model, golden.files.config, aside)
    mode = golden.files.generation["mtp_inference_mode"]
    wanted = generate_with_mtp(
        layers, golden.model, prompt.ids, mode=mode, max_new_tokens=COUNT,
        stop=golden.files.layout.stop,
    )  # fmt: skip
    assert mixed["ids"] == wanted != plain["ids"]
    assert "--mtp" in asked("glm4_voice", records, "--mtp")
    assert "wanted 0, greedy" in asked("vita_audio", records, "--mtp", "--temperature", "1")


def test_sound_becomes_vectors_where_the_family_has_an_encoder(asked, folder):
    golden, _ = loaded("vita_audio_plus")
    (response,) = asked("vita_audio_plus", [{"prompt": "<|audio|> and?", "audio": "q.wav"}])
    encoder = load_audio_encoder(golden.family, golden.files)
    vectors = encoder.encode(to_mono(read_wave(folder / "q.wav")[0]))
    turn = {"role": "user", "content": "<|audio|> and?"}
    audio = Audio(positions=[len(piece) for piece in vectors])
    prompt = golden.family.prompt(golden.files, [turn], [audio])
    assert prompt.spans and response["ids"] == expected(golden, prompt, torch.cat(vectors))


def test_sound_without_its_codec_or_encoder_is_no_fault_of_the_prompt(asked, folder):
    records = [{"prompt": "what?", "audio": "q.wav"}, {"prompt": "hello"}]
    said = asked("vita_audio", records)
    assert "--codec: nothing given" in said and "hears as codes; wanted glm4_voice" in said
    said = asked("vita_audio", records, "--codec", "toy", "--codec-option", "codebook_size=3")
    assert "--codec: toy has 3 codes, wanted" in said
    (folder / "plus").mkdir()
    for file in (GOLDEN / "vita_audio_plus").iterdir():
        if file.name != "am.mvn":
            (folder / "plus" / file.name).symlink_to(file)
    said = asked(folder / "plus", records)
    assert f"--model: {folder / 'plus' / 'am.mvn'} cannot be read" in said


def test_a_model_is_asked_as_it_was_trained_unless_a_flag_differs(asked, folder):
    golden, _ = loaded("step_audio_2")
    directory = folder / "exported"
    shutil.copytree(GOLDEN / "step_audio_2", directory)
    write_dialogue_file(directory, {"data": "d.jsonl", "system": "Be kind.", "ratio": [1, 2]})
    record = {"messages": [{"role": "user", "content": "hello"}]}
    system = {"role": "system", "content": "Be kind."}

    def prompt(turns):
        files = dataclasses.replace(golden.files, options=DialogueOptions(ratio=(1, 2)))
        return golden.family.prompt(files, turns, [])

    (response,) = asked(directory, [record])
    assert response["ids"] == expected(golden, prompt([system, *record["messages"]]))
    assert "--system" in asked(directory, [record], "--system", "")  # other answers are there
    (response,) = asked(directory, [record], "--system", "", "--redo", "responses")
    assert response["ids"] == expected(golden, prompt(record["messages"]))
    settings = json.loads((folder / "out" / "stages.json").read_text())["responses"]
    assert settings["--ratio"] == [1, 2] and settings["--channel"] is None


def test_a_run_says_how_its_model_was_trained(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    task = "{data: d.jsonl, ratio: [1, 4], channel: 1, prompt_style: release}"
    (run / "config.yaml").write_text(f"recipe: wavalign\nmodel: {{path: m}}\ntask: {task}\n")
    for directory in (run, run / "checkpoint"):
        talk = Talk(channel="mean").or_as_trained(directory)
        assert talk == Talk(ratio=(1, 4), channel="mean", prompt_style="release")
        assert talk.options == DialogueOptions(ratio=(1, 4), prompt_style="release")
    with pytest.raises(UserError, match=r"--ratio: \(1, 4\) given for a model of no known family"):
        talk.check_unsaid("a model of no known family")


def test_the_channel_of_a_flag_is_heard(asked, folder):
    golden, _ = loaded("vita_audio")
    size = golden.files.layout.codebook_size
    codec = ("--codec", "toy", "--codec-option", f"codebook_size={size}")
    both = torch.stack([torch.sin(torch.arange(8000) * turn) for turn in (0.1, 0.4)])
    write_wave(folder / "q.wav", both, 16000)
    (response,) = asked("vita_audio", [{"prompt": "?", "audio": "q.wav"}], *codec, "--channel", "1")
    wave, rate = read_wave(folder / "q.wav")
    codes = open_codec({"kind": "toy", "codebook_size": size}).encode(wave[1], rate).tolist()
    turn = {"role": "user", "content": "<|audio|>"}
    prompt = golden.family.prompt(golden.files, [turn], [Audio(codes=codes)])
    assert response["ids"] == expected(golden, prompt)


def test_modality_text_asks_the_words(asked, folder):
    records = [{"prompt": "hello", "audio": "q.wav"}]
    (response,) = asked("vita_audio", records, "--modality", "text")
    golden, _ = loaded("vita_audio")
    prompt = golden.family.prompt(golden.files, [{"role": "user", "content": "hello"}], [])
    assert response["ids"] == expected(golden, prompt)


def test_two_streams_answer_in_both(asked, folder):
    """Codes and vectors of a clip are heard together, and a position has two ids."""
    make_tiny_checkpoint("kimi_audio", folder / "kimi", codebook_size=80)
    codec = ("--codec", "toy", "--codec-option", "codebook_size=80", "--max-new-tokens", "31")
    records = [{"prompt": "<|audio|> and?", "audio": "q.wav"}]
    (response,) = asked(folder / "kimi", records, *codec)
    opened = load_family(folder / "kimi", torch.float32)
    wave, rate = read_wave(folder / "q.wav")
    codes = open_codec({"kind": "toy", "codebook_size": 80}).encode(wave, rate).tolist()
    vectors = load_audio_encoder(opened.family, opened.files).encode(to_mono(wave))
    audio = Audio(codes=codes, positions=[len(piece) for piece in vectors])
    turn = {"role": "user", "content": "<|audio|> and?"}
    prompt = opened.family.prompt(opened.files, [turn], [audio])
    heard = HeardPrompt.of(prompt, vectors)
    said = sample_two_streams(
        opened.model, [heard], opened.files.layout, max_new_tokens=15, temperature=0.0
    )
    streams = TwoStreams(opened.files.layout)
    assert len(heard.places) == len(codes) > 1
    assert streams.apart(response["ids"]) == (said.text[0], said.audio[0])
    parts = opened.family.split(opened.files, said.text[0], said.audio[0])
    assert response["codes"] == parts.codes
    assert response["text"] == opened.files.tokenizer.decode(parts.text)


def test_another_family_or_codec_is_named(asked):
    records = [{"prompt": "hello"}]
    assert "--family: family 'vita': not known" in asked("vita_audio", records, "--family", "vita")
    assert "--codec: " in asked("vita_audio", records, "--codec", "toyy")
    assert "--codec-option: 'x' given" in asked(
        "vita_audio", records, "--codec", "toy", "--codec-option", "x"
    )
