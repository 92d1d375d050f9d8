"""
Whisper's English-only tokenizer without a hub: built from the ranks that openai-whisper carries as an asset.

tiktoken's file holds tokens and ranks; transformers wants the merges that lead to them. The merge that makes a token is the
last one byte-pair encoding does on it with the ranks below its own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import transformers

from kidspeech.errors import CheckpointError, RecipeError

# In openai-whisper's order (whisper/tokenizer.py, LANGUAGES); Hebrew has the old code under which these checkpoints know it
LANGUAGES = """
    en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi iw uk el ms cs ro da hu ta no th ur hr bg lt la mi ml cy sk te
    fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo ht ps
    tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su
"""
SPECIAL = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{language}|>" for language in LANGUAGES.split()),
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nocaptions|>",
    "<|notimestamps|>",
)
FEWEST, WHOLE = 256 + len(SPECIAL), 50_256 + len(SPECIAL)


@cache
def english_tokenizer(size: int = WHOLE) -> transformers.PreTrainedTokenizerBase:
    """
    Return the tokenizer of Whisper's English-only checkpoints: <|endoftext|> is 50256, <|notimestamps|> 50362.

    Takes about a second. A smaller one keeps the most frequent texts and the special tokens after them: a network with
    random weights spends most of its time in the output layer of the whole one.

    Args:
        size: number of tokens, special ones included; FEWEST (every byte, and the special ones) to WHOLE.

    Raises:
        CheckpointError: openai-whisper's assets are not installed.
        RecipeError: no vocabulary of that size.
    """
    if not FEWEST <= size <= WHOLE:
        msg = f"model.random.vocab_size: must be from {FEWEST} to {WHOLE}"
        raise RecipeError(msg)
    ranks = {token: rank for token, rank in _ranks().items() if rank < size - len(SPECIAL)}
    spelled = {token: _spelled(token) for token in ranks}
    merges = [tuple(_spelled(part) for part in _parts(token, ranks)) for token in ranks if len(token) > 1]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()} | {SPECIAL[0]: len(ranks)}
    tokenizer = transformers.WhisperTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    tokenizer.pad_token = SPECIAL[0]
    tokenizer.set_prefix_tokens()
    return tokenizer


def for_4_and_5(tokenizer_config: str) -> str:
    """
    Return the text of a tokenizer_config.json so that transformers 4.57 reads it as well as 5.

    5 saves the list of special tokens under a name that meant a dict before, and reads it under the old name too.
    """
    settings = json.loads(tokenizer_config)
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return json.dumps(settings, indent=2, ensure_ascii=False)


def _ranks() -> dict[bytes, int]:
    whisper = find_spec("whisper")  # found, not imported: that would take torch and numba along
    path = Path((whisper and whisper.origin) or "").parent / "assets" / "gpt2.tiktoken"
    if not path.is_file():
        msg = f"no {path}: a new tokenizer is built from openai-whisper's asset; pip install openai-whisper"
        raise CheckpointError(msg)
    pairs = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    parts, own = [token[place : place + 1] for place in range(len(token))], ranks[token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, own) for left, right in pairwise(parts)]
        place = pairs.index(min(pairs))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def _alphabet() -> Iterable[tuple[int, str]]:
    # GPT-2 writes each byte as a printable character: printable Latin-1 as itself, the others from U+0100 on
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    yield from ((byte, chr(byte)) for byte in printable)
    yield from ((byte, chr(0x100 + number)) for number, byte in enumerate(others))


_CHARACTERS = dict(_alphabet())


def _spelled(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)
