"""
Predictions files: which field they hold, what they say, and whether they belong to the references.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from kidspeech.errors import ScoreError
from kidspeech.manifest import SHOWN, TEXT_FIELDS, TextField, Utterance, read_jsonl

EXAMPLES = 5  # ids named in one message; the rest are counted


def text_field(path: Path) -> TextField:
    """
    Return the field that the predictions of *path* hold, by its first line.

    Raises:
        ManifestError: the file can't be read.
        ScoreError: there is no first line, or it has neither field or both.
    """
    place, record = next(read_jsonl(path, []), (str(path), {}))
    held = [name for name in TEXT_FIELDS if name in record]
    if len(held) != 1:
        what = f"holds {' and '.join(held)}" if held else "holds no text that can be scored"
        msg = f"{place}: {what}; give each line utterance_id and either orthographic_text (WER) or phonetic_text (IPA CER)"
        raise ScoreError(msg)
    return held[0]


def read_predictions(path: Path, field: TextField = "orthographic_text") -> dict[str, str]:
    """
    Read the predicted text of every utterance, by id, in the file's order.

    Raises:
        ManifestError: the file can't be read.
        ScoreError: with every line that has no id or no text, and every id that stands more than once.
    """
    problems: list[str] = []
    texts: dict[str, str] = {}
    places: dict[str, str] = {}
    for place, record in read_jsonl(path, problems):
        wrong = _wrong(record, field)
        name = record.get("utterance_id")
        if name in places and not wrong:
            wrong = f"utterance_id {name!r} stands already in {places[name].removeprefix(f'{path}, ')}"
        if wrong:
            problems.append(f"{place}: {wrong}")
            continue
        texts[str(name)], places[str(name)] = record[field], place
    if problems:
        raise ScoreError(_report(path, problems))
    return texts


def check_ids(predictions: Mapping[str, str], references: Sequence[Utterance]) -> None:
    """
    Make sure that each reference has its prediction and there is nothing else.

    Raises:
        ScoreError: with the number and the first of the missing, extra and doubled ids.
    """
    counts = Counter(utterance.utterance_id for utterance in references)
    kinds = {
        "references without a prediction": [name for name in counts if name not in predictions],
        "predictions without a reference": [name for name in predictions if name not in counts],
        "ids that stand several times in the references": [name for name, count in counts.items() if count > 1],
    }
    found = [f"{len(names):,} {what}: {_examples(names)}" for what, names in kinds.items() if names]
    if not counts:
        found = ["there are no references"]
    if found:
        msg = "\n  ".join(["predictions and references don't belong together; give the manifest they were made for:", *found])
        raise ScoreError(msg)


def _wrong(record: Mapping[str, Any], field: TextField) -> str | None:
    name = record.get("utterance_id")
    if not isinstance(name, str) or not name:
        return "utterance_id is missing or not a text"
    if not isinstance(record.get(field), str):
        return f'{field} of {name!r} is missing or not a text; where nothing was heard, give ""'
    return None


def _report(path: Path, problems: Sequence[str]) -> str:
    rest = [f"… and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else []
    count = f"{len(problems):,} line{'s' * (len(problems) > 1)}"
    return "\n  ".join([f"{count} of {path} can't be scored; mend them and start again:", *problems[:SHOWN], *rest])


def _examples(names: Sequence[str]) -> str:
    return ", ".join(islice(names, EXAMPLES)) + (" …" if len(names) > EXAMPLES else "")
