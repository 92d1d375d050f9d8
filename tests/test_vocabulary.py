"""
The tokenizer built from openai-whisper's asset is Whisper's.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings, strategies

from kidspeech.errors import RecipeError
from kidspeech.models.whisper_vocabulary import english_tokenizer

tokenizer = cache(english_tokenizer)


@pytest.mark.unit
def test_special_tokens_have_whispers_ids() -> None:
    """
    The ids that openai-whisper's English-only checkpoints were trained with.
    """
    ids = {"<|endoftext|>": 50256, "<|startoftranscript|>": 50257, "<|en|>": 50258, "<|transcribe|>": 50358}
    ids |= {"<|nocaptions|>": 50361, "<|notimestamps|>": 50362}

    assert {name: tokenizer().convert_tokens_to_ids(name) for name in ids} == ids
    assert tokenizer().prefix_tokens == [50257, 50362]
    assert len(tokenizer()) == 50363


@pytest.mark.unit
def test_a_smaller_vocabulary_keeps_every_text(tmp_path: Path) -> None:
    """
    With 4,107 tokens the special ones follow at once, any text survives, and a processor saves and loads it.
    """
    small = english_tokenizer(4_107)
    transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), small).save_pretrained(tmp_path)
    loaded = transformers.WhisperProcessor.from_pretrained(tmp_path).tokenizer

    for each in (small, loaded):
        ids = each("naïve 🎈 elephants").input_ids
        assert (each.eos_token_id, each.prefix_tokens, len(each)) == (4_000, [4_001, 4_106], 4_107)
        assert each.decode(ids, skip_special_tokens=True) == "naïve 🎈 elephants"
    for impossible in (100, 60_000):
        with pytest.raises(RecipeError, match=r"model\.random\.vocab_size: must be from 363 to 50363"):
            english_tokenizer(impossible)


@pytest.mark.unit
@settings(deadline=None)
@given(strategies.text())
def test_any_text_survives(text: str) -> None:
    """
    Byte-level: whatever is encoded decodes to itself.
    """
    ids = tokenizer()(text, add_special_tokens=False).input_ids

    assert tokenizer().decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.integration
def test_it_splits_texts_like_the_real_one(shared: Path) -> None:
    """
    On 1,160 real transcripts and some odd ones: the same ids, the same text back.
    """
    real = transformers.WhisperTokenizer.from_pretrained(shared / "models" / "whisper-tiny.en")
    lines = (shared / "kids" / "train_word_transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [*lines, "I goed  there!\n", "naïve café £3.50", "🎈 red", "don't", "<|notimestamps|>", " "]

    assert tokenizer()(texts).input_ids == real(texts).input_ids
    assert tokenizer().get_vocab() == real.get_vocab()
