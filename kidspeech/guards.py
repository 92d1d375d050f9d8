"""
What children's clips need around a decoder that loves to talk: each guard can be switched off, and says when it acted.

- cap: a clip has no more tokens than its length allows, so that a loop costs little (in the decoding itself);
- loop: a phrase that comes far too often in a row is said once;
- silence: a clip in which nothing is loud enough to be speech has no words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kidspeech.config import Decode

LONGEST = 12  # words of a phrase that is looked for in loops
LETTERS = 8, 10  # letters of a piece of a word, and how often it comes at least in a loop like hahahahaha
NAMES = ("cap", "loop", "silence")


@dataclass(frozen=True)
class Decoded:
    """
    What a decoder made of one clip.

    Attributes:
        text: as it came.
        capped: whether it was cut at the cap on tokens.
        level: of the loudest band in any frame of 25 ms: log10 of its mel power.
    """

    text: str
    capped: bool
    level: float


@dataclass(frozen=True)
class Transcript:
    """
    What is said in one clip, and which of the guards (NAMES) acted on it.
    """

    text: str
    guards: tuple[str, ...] = ()


def guarded(decoded: Decoded, settings: Decode) -> Transcript:
    """
    Return the transcript that the guards leave.
    """
    if settings.silence is not None and decoded.level < settings.silence:
        return Transcript("", ("silence",) if decoded.text else ())
    acted = ["cap"] if decoded.capped else []
    text = decoded.text if settings.max_repeats is None else without_loops(decoded.text, settings.max_repeats)
    return Transcript(text, (*acted, *(["loop"] if text != decoded.text else [])))


def without_loops(text: str, most: int) -> str:
    """
    Return *text* with every phrase of up to LONGEST words that comes more than *most* times in a row said once.

    Case and punctuation don't count. A torn repetition at the end of the text goes too. Inside a word, a piece of up to
    eight letters that comes ten times or more is left once.

    >>> without_loops("And then, and then, and then, and th", 2)
    'And then,'
    """
    size, times = LETTERS
    words = re.sub(rf"(\S{{1,{size}}}?)\1{{{times - 1},}}", r"\1", text).split()
    for length in range(1, LONGEST + 1):
        words = _once(words, length, most)
    return " ".join(words) if words != text.split() else text


def _once(words: Sequence[str], length: int, most: int) -> list[str]:
    heard = [re.sub(r"\W", "", word).lower() for word in words]
    kept: list[str] = []
    place = 0
    while place < len(words):
        phrase, end = heard[place : place + length], place + length
        while heard[end : end + length] == phrase:
            end += length
        kept += words[place : place + (length if end - place > most * length else 1)]
        place = _after(heard, phrase, end) if end - place > most * length else place + 1
    return kept


def _after(heard: Sequence[str], phrase: Sequence[str], end: int) -> int:
    torn = heard[end:]  # the cap may cut the last repetition anywhere, inside a word too
    whole, part = torn[:-1], torn[-1] if torn else ""
    fits = len(torn) <= len(phrase) and whole == phrase[: len(whole)] and phrase[max(len(whole), 0)].startswith(part)
    return len(heard) if torn and fits else end
