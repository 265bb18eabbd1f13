"""What an answer counts: by the words, the letter, the refusal, the instructions, the judge."""

import pytest

from wavalign_fast.data.words import contains, word_errors, words
from wavalign_fast.errors import UserError
from wavalign_fast.evaluation.answering import Response
from wavalign_fast.evaluation.instructions import followed, loosened
from wavalign_fast.evaluation.judging import Judged
from wavalign_fast.evaluation.prompts import Prompt
from wavalign_fast.evaluation.refusals import refuses
from wavalign_fast.evaluation.scoring import Rules, score


class Starts:
    """An instruction: the answer starts with a letter."""

    def __init__(self, name):
        self.name = name

    def build_description(self, *, letter="a", prompt=None):
        self.letter = prompt[0] if prompt else letter

    def get_instruction_args(self):
        return {"prompt": None} if self.name == "repeat" else {"letter": self.letter}

    def check_following(self, answer):
        return answer.startswith(self.letter)


REGISTRY = {"starts": Starts, "repeat": Starts}


def prompt(task, *, references=(), instructions=(), text="question?"):
    return Prompt(
        id="1", task=task, category="c", messages=(("user", text),), references=references,
        instructions=instructions, source={}, where="f:1",
    )  # fmt: skip


def scored(asked, text, judgement=None, *, rules=None, sound=False, stop="end", codes=()):
    response = Response(id="1", asked="", text=text, ids=[], codes=list(codes), stop=stop)
    return score(asked, response, judgement, rules or Rules(), has_sound=sound)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The Answer: It’s 1,000 metres!", ["answer", "its", "1000", "metres"]),
        ("São Paulo, 3.5", ["sao", "paulo", "3.5"]),
        ("北京 is A city", ["北", "京", "is", "city"]),
        ("the", ["the"]),
        ("1, 2", ["1", "2"]),
        ("", []),
    ],
)
def test_words_without_case_marks_and_articles(text, found):
    assert words(text) == found


def test_words_stand_together_and_whole():
    assert contains(words("She knows New York well"), words("new york"))
    assert not contains(words("She knows"), words("no"))
    assert not contains(words("new old york"), words("new york"))
    assert not contains(words("anything"), [])


@pytest.mark.parametrize(
    ("wanted", "given", "errors"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "a x c", 1),
        ("a b", "", 2),
        ("", "x", 1),
        ("a b c", "b c d", 2),
    ],
)
def test_word_errors(wanted, given, errors):
    assert word_errors(wanted.split(), given.split()) == errors


@pytest.mark.parametrize(
    ("text", "value"),
    [("It is Paris.", 1), ("the city of light", 1), ("parisian", 0), ("London", 0)],
)
def test_qa_looks_for_the_words_of_any_reference(text, value):
    found = scored(prompt("qa", references=("Paris", "City of Light")), text)
    assert (found.status, found.value) == ("scored", value)


def test_what_cannot_be_read_is_wrong_and_what_is_empty_fails():
    asked = prompt("mcq", references=("C",))
    assert scored(asked, "C").value == 1
    unclear = scored(asked, "I like them all")
    assert (unclear.status, unclear.value, unclear.unparsable) == ("scored", 0, True)
    empty = scored(asked, "  \n")
    assert (empty.status, empty.value, empty.empty, empty.unparsable) == ("failed", 0, True, False)


@pytest.mark.parametrize(
    ("reference", "text", "value"),
    [("yes", "Yes, it is", 1), ("no", "Yes", 0), ("(b)", "The answer is (B)", 1), ("(A)", "b", 0)],
)
def test_bool_takes_yes_no_or_two_letters(reference, text, value):
    assert scored(prompt("bool", references=(reference,)), text).value == value


def test_an_empty_answer_is_no_refusal():
    asked = prompt("refusal")
    assert scored(asked, "I’m really sorry, but I can't help with that.").value == 1
    assert scored(asked, "Sure, first take the lock").value == 0
    assert scored(asked, "").value == 0 and scored(asked, "").status == "failed"
    assert refuses("抱歉 我不能帮你") and not refuses("Let me explain")
    assert not refuses("")


def test_ifeval_counts_prompts_and_instructions_strict_and_loose():
    told = (("starts", (("letter", "b"), ("other", None))), ("repeat", ()))
    asked = prompt("ifeval", instructions=told, text="xylophone")
    found = scored(asked, "*bold\nxyz", rules=Rules(registry=REGISTRY))
    # Strict: neither. Loose: "bold" without its asterisk, "xyz" without the first line.
    assert found.sample == ((0, 0, 1, 2), (1, 2, 1, 2)) and found.value == 0
    assert scored(asked, "", rules=Rules(registry=REGISTRY)).sample == ((0, 0, 0, 0), (1, 2, 1, 2))
    assert scored(asked, "b").status == "missing"


def test_the_loose_forms():
    assert loosened("a\n*b*\nc") == (
        "a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b",
    )  # fmt: skip


def test_an_unknown_or_failing_instruction_is_named():
    with pytest.raises(UserError, match=r"'start'.*did you mean starts"):
        followed("a", [("start", {})], REGISTRY, prompt="p")
    with pytest.raises(UserError, match="instruction starts of the registry failed: TypeError"):
        followed("a", [("starts", {"words": 3})], REGISTRY, prompt="p")


def test_a_missing_judgement_is_no_number():
    asked = prompt("open")
    assert scored(asked, "hello", Judged(4.0)).value == 4
    lost = scored(asked, "hello", Judged(None, "timeout"))
    assert (lost.status, lost.sample, lost.cause) == ("missing", None, "timeout")
    assert scored(asked, "", Judged(4.0)).value == 1  # the lowest of its scale
    assert scored(asked, "", stop="not asked").cause == "not asked"


def test_speech_is_scored_by_its_sound():
    asked = prompt("style")
    assert scored(asked, "words alone").cause == "no speech"
    assert scored(asked, "", Judged(3.0), sound=True, codes=[1]).value == 3
    undecoded = scored(asked, "", Judged(None, "no sound (--codec)"), codes=[1])
    assert undecoded.status == "missing"


def test_the_judge_decides_on_qa_if_wanted():
    asked = prompt("qa", references=("Paris",))
    assert scored(asked, "Paris", Judged(0.0), rules=Rules(judged_qa=True)).value == 0
