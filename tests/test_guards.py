"""
Guards: loops are said once, stuttering children are left alone.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kidspeech.config import Decode
from kidspeech.guards import Decoded, Transcript, guarded, without_loops

pytestmark = pytest.mark.unit
WORDS = st.lists(st.sampled_from(["I", "went", "there", "no", "Yes,"]), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("and then and then and then and then and then and then and th", "and then"),
        ("I saw a dog. I saw a dog. I saw a dog. I saw a dog. I saw a dog. I saw a dog.", "I saw a dog."),
        ("look, Look look look look look look at me", "look, at me"),
        ("he laughed hahahahahahahahahahaha loud", "he laughed ha loud"),
        ("no no no no no", "no no no no no"),
        ("I I I want the the red one", "I I I want the the red one"),
        ("bananas", "bananas"),
        ("", ""),
    ],
)
def test_loops_are_said_once_and_stutters_stay(text: str, left: str) -> None:
    """
    More than five times in a row is a loop, whatever case and punctuation; five are a child who means it.
    """
    assert without_loops(text, 5) == left


@given(WORDS, st.integers(6, 40))
def test_whatever_loops_is_found(phrase: list[str], times: int) -> None:
    """
    However long the phrase and often it comes, what is left is no longer than what may be said.
    """
    left = without_loops(" ".join(phrase * times), 5).split()

    assert len(left) <= 5 * len(phrase)
    assert left == without_loops(" ".join(left), 5).split()


@given(st.lists(st.text("abcdefgh ,.", min_size=1, max_size=9), max_size=9, unique=True), st.integers(1, 9))
def test_a_text_in_which_nothing_comes_twice_in_a_row_stays_to_the_letter(parts: list[str], most: int) -> None:
    """
    Its spaces and punctuation too.
    """
    text = " ".join(f"{part}{number}" for number, part in enumerate(parts))

    assert without_loops(text, most) == text


def test_silence_has_no_words_and_counts_only_where_it_had_some() -> None:
    """
    The threshold is a setting; null takes the decoder's word for everything.
    """
    settings = Decode(silence=-3.5)

    assert guarded(Decoded("Thank you.", False, -3.6), settings) == Transcript("", ("silence",))
    assert guarded(Decoded("", False, -10.0), settings) == Transcript("")
    assert guarded(Decoded("hello", True, -3.4), settings) == Transcript("hello", ("cap",))
    assert guarded(Decoded("Thank you.", False, -10.0), Decode(silence=None)) == Transcript("Thank you.")
