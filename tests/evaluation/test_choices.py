"""The choice in an answer: letters, yes and no, and what cannot be read."""

import pytest

from wavalign_fast.evaluation.choices import read_letter, read_yes_or_no

COLOURS = ("red", "light blue", "blue", "green")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(c)", "C"),
        ("**D.**", "D"),
        ("b) because it floats", "B"),
        ("B. Because it floats", "B"),
        ("The answer is B", "B"),
        ("The correct answer is: **C**.", "C"),
        ("The best choice would be (a).", "A"),
        ("I would choose option D, not A.", "D"),
        ("Answer: A", "A"),
        ("The answer is \\boxed{B}", "B"),
        ("The answer is A. No, wait: the answer is C.", "C"),
        ("Option B is the correct one.", "B"),
        ("Hmm, it must be (B)", "B"),
        ("I think B fits best", "B"),
        ("答案是B。", "B"),
        ("答案\uff1aC", "C"),
        ("The answer is a dog.", None),
        ("A dog and I went out", None),
        ("A or B", None),
        ("B, C and D are good", None),
        ("Both A and B fit", None),
        ("It might be (B), perhaps (C)", None),
        ("The answer is (B) or C", None),
        ("It could be (A) or (B).", None),
        ("", None),
        ("I don't know", None),
        ("The answer is E", None),
    ],
)
def test_a_letter_is_read_or_not(answer, letter):
    assert read_letter(answer) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("It is green.", "D"),
        ("It is light blue!", "B"),
        ("It is red or green.", None),
        ("It is black.", None),
    ],
)
def test_the_text_of_one_choice_is_read(answer, letter):
    assert read_letter(answer, COLOURS) == letter


def test_letters_behind_the_last_choice_are_none():
    assert read_letter("C", count=2) is None
    assert read_letter("F", tuple("uvwxyz")) == "F"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes.", "yes"),
        ("no, he does not", "no"),
        ("The sentence is plausible.", "yes"),
        ("This is not very plausible.", "no"),
        ("The sentence is implausible", "no"),
        ("First no, then yes. So the answer is yes.", "yes"),
        ("**Answer:** No", "no"),
        ("It may be true or false", None),
        ("I know nothing", None),
        ("答案是否", "no"),
        ("是的", "yes"),
        ("", None),
    ],
)
def test_yes_or_no_is_read_or_not(answer, verdict):
    assert read_yes_or_no(answer) == verdict
