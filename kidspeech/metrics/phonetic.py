"""
The normalisation of the contest's phonetic track, as it publishes it.
"""

from __future__ import annotations

import string
import unicodedata

TIE_BARS = "\u035c\u0361"  # under and over two letters
STRESS = "ˈˌ"
TILDE = "\u0303"  # a nasal vowel; ẽ ĩ õ ũ are single characters after NFC and are mapped one by one
_TABLE = str.maketrans("ẽĩõũɝ", "eiouɚ", TIE_BARS + STRESS + TILDE + string.punctuation)


def normalise_ipa(text: str) -> str:
    """
    Bring IPA *text* into the form in which the contest compares characters.

    NFC; no stress, tie bars, nasalisation or ASCII punctuation; ɝ as ɚ; affricates as ligatures; single spaces.
    """
    plain = unicodedata.normalize("NFC", text).translate(_TABLE)
    return " ".join(plain.replace("tʃ", "ʧ").replace("dʒ", "ʤ").split())
