"""A toy task of a model with two streams: a clip in each prompt, text and codes in each answer."""

import torch

from tests.train.conftest import WANTED, ToyTask
from wavalign_fast.data.records import Demonstration, Example
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.models import PromptEmbeddings, TwoStreams
from wavalign_fast.models.families.interface import IGNORE, FamilyLayout, Prompt, Target

ROWS = 24
BLANK, STOP, TEXT_END, FIRST_CODE = 0, 1, 6, 12
FAMILY = FamilyLayout(
    stream=ModalityLayout(vocab_size=ROWS, speech=(), eos=(TEXT_END,)),
    second=ModalityLayout(vocab_size=ROWS, speech=((0, ROWS),), eos=(STOP,), eos_as="speech"),
    first_code=FIRST_CODE,
    codebook_size=ROWS - FIRST_CODE,
    stop=(STOP,),
    special=frozenset((BLANK, STOP, TEXT_END)),
    named={"text_blank": BLANK, "text_eos": TEXT_END},
)


class TwoStreamTask(ToyTask):
    """Prompts of text beside two codes with vectors, demonstrations of text and speech."""

    def __init__(self, *, hidden: int = 16) -> None:
        super().__init__(hidden=hidden)
        self.streams = TwoStreams(FAMILY)
        self.layout, self.pad_id = self.streams.layout, self.streams.forced
        self.eos_id = self.streams.ends
        self.prompt_embeddings = PromptEmbeddings(self.layout.vocab_size)
        clips = torch.randn(3, 2, hidden, generator=torch.Generator().manual_seed(0))
        self.train_examples = [self._example(number, clips) for number in range(10)]

    def _example(self, number: int, clips: torch.Tensor) -> Example:
        text = [2, *[3] * (number % 3), 4]
        audio = [FIRST_CODE + number % 3, FIRST_CODE + 5, *[BLANK] * (number % 3)]
        none = [IGNORE] * len(text)
        ids = self.streams.prompt(
            Prompt(ids=text, labels=none, second_ids=audio, second_labels=none)
        )
        clip = number % 3
        heard = self.prompt_embeddings.ids(clip, 2, lambda: clips[clip], under=ids[1:4:2])
        ids[1:4:2] = heard
        return Example(id=str(number), prompt="", prompt_ids=tuple(ids), reference="")

    def load_model(self):
        """Returns a random model of two shared layers, two of the text and one of the audio."""
        from wavalign_fast.models.families.kimi_model import KimiAudioConfig, KimiAudioModel

        config = KimiAudioConfig(
            vocab_size=ROWS,
            hidden_size=self.hidden,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            shared_layers=2,
            mimo_layers=1,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return KimiAudioModel(config).eval()

    def demonstrations(self, examples, rng):
        """Returns answers with one text id, and one to four codes behind six blanks."""
        answers = []
        for _ in examples:
            codes = range(FIRST_CODE, FIRST_CODE + rng.randrange(1, 5))
            audio = [*[BLANK] * 6, *codes, STOP]
            text = [WANTED, TEXT_END]
            left = len(audio) - len(text)
            answers.append(
                Target(
                    ids=[*text, *[BLANK] * left],
                    labels=[*text, *[IGNORE] * left],
                    second_ids=audio,
                    second_labels=[*[IGNORE] * 6, *codes, STOP],
                )
            )
        return [
            Demonstration(
                prompt_ids=example.prompt_ids, answer_ids=tuple(self.streams.target(answer))
            )
            for example, answer in zip(examples, answers, strict=True)
        ]
