"""
The dataset's card: README.md in its folder, in the form the Hub knows, with what is in it and how it was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import yaml

from kidspeech.arrow_folder import COLUMNS, Example
from kidspeech.manifest import AGE_BUCKETS

PACKAGES = ("numpy", "soundfile", "soxr", "torch", "transformers", "tokenizers", "pyarrow")
HEAD = """---
task_categories: [automatic-speech-recognition]
tags: [children, log-mel, kidspeech]
---
# Children's speech, prepared for training

Made by `kidspeech prepare`; `datasets.load_from_disk` opens this folder. Whole children validate: none is on both sides.
"""


def card(told: Mapping[str, Any], sides: Mapping[str, Sequence[Example]]) -> str:
    """
    Return the card as Markdown; the same dataset made with the same versions has the same one.

    Args:
        told: what prepare.json says, see kidspeech.prepared.Prepared.
        sides: the examples of each split.
    """
    columns = [[f"`{name}`", column.kind, column.unit, column.about] for name, column in COLUMNS.items()]
    versions = {"kidspeech": told["version"]} | {name: version(name) for name in PACKAGES}
    notes = "".join(f"\n- {note}" for note in told["notes"])
    skipped = [[reason, f"{count:,}"] for reason, count in told["skipped"].items()]
    parts = [
        HEAD,
        f"## What is in it\n\n{_amounts(sides)}{notes and chr(10) + notes}\n",
        f"## Columns\n\n{_table(['column', 'type', 'unit', ''], columns)}",
        f"## Left out\n\n{_table(['reason', 'utterances'], skipped)}" if skipped else "## Left out\n\nNothing.\n",
        f"## Recipe\n\n```yaml\n{yaml.safe_dump(told['recipe'], sort_keys=False)}```\n",
        f"## Made with\n\n{', '.join(f'{name} {number}' for name, number in versions.items())}. Key {told['key']}.\n",
    ]
    return "\n".join(parts)


def _amounts(sides: Mapping[str, Sequence[Example]]) -> str:
    ages = [
        age for age in AGE_BUCKETS if any(example.utterance.age_bucket == age for side in sides.values() for example in side)
    ]
    head = ["age", *(f"{name}, {what}" for name in sides for what in ("utterances", "hours", "children"))]
    rows = [[age, *_counts(sides, age)] for age in ages]
    return _table(head, [*rows, ["all", *_counts(sides, None)]])


def _counts(sides: Mapping[str, Sequence[Example]], age: str | None) -> list[str]:
    cells = []
    for side in sides.values():
        chosen = [example for example in side if age in (None, example.utterance.age_bucket)]
        hours = sum(example.row.small["seconds"] for example in chosen) / 3600
        children = {example.utterance.child_id for example in chosen}
        cells += [f"{len(chosen):,}", f"{hours:,.2f}", f"{len(children):,}"]
    return cells


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
