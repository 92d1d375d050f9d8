"""
The folder as `datasets` knows it, written without it: columns, metadata, card, and what that spares every start.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies

from kidspeech import shards
from kidspeech.arrow_folder import COLUMNS
from kidspeech.config import load_recipe
from kidspeech.dataset import build_dataset

from corpora import Corpus


@pytest.mark.integration
def test_what_is_written_without_datasets_is_what_datasets_writes(recipe_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    Column types, their metadata and dataset_info.json are those of the installed `datasets` for the same features.
    """
    build_dataset(load_recipe(recipe_file), [corpus.manifest], corpus.audio_dirs, tmp_path / "DATA")
    side = datasets.load_from_disk(str(tmp_path / "DATA"))["train"]
    features = datasets.Features(
        {
            name: datasets.List(datasets.Value(column.kind[5:-1]))
            if column.kind[:5] == "list<"
            else datasets.Value(column.kind)
            for name, column in COLUMNS.items()
        }
    )
    datasets.DatasetInfo(features=features).write_to_directory(str(tmp_path))

    assert side.features == features
    assert side.data.schema.equals(features.arrow_schema, check_metadata=True)
    written = [json.loads((folder / "dataset_info.json").read_text()) for folder in (tmp_path, tmp_path / "DATA" / "train")]
    assert written[0] == written[1]


@pytest.mark.integration
def test_the_card_tells_every_column_and_the_counts(recipe_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    README.md names each column with type and unit, and counts by age group and side what is in the dataset.
    """
    build_dataset(load_recipe(recipe_file), [corpus.manifest], corpus.audio_dirs, tmp_path / "DATA")
    sides = datasets.load_from_disk(str(tmp_path / "DATA"))
    card = (tmp_path / "DATA" / "README.md").read_text(encoding="utf-8")

    for name, column in COLUMNS.items():
        assert f"| `{name}` | {column.kind} | {column.unit} | {column.about} |" in card
    assert set(sides["train"].column_names) == set(COLUMNS)
    for age in ("3-4", "5-7", "8-11"):
        counts = [sum(bucket == age for bucket in side["age_bucket"]) for side in sides.values()]
        assert re.search(rf"\| {age} \| {counts[0]} \| [\d.]+ \| \d+ \| {counts[1]} \| ", card)
    assert "val_ratio: 0.34" in card


@pytest.mark.unit
@given(
    strategies.lists(strategies.none() | strategies.text()), strategies.lists(strategies.none() | strategies.integers(-99, 99))
)
@settings(deadline=None)
def test_columns_are_those_of_pyarrow(texts: list[str | None], numbers: list[int | None]) -> None:
    """
    Built without pandas, null by null what pyarrow builds of the same values.
    """
    arrays = [np.arange(number, dtype=np.float16) if number and number > 0 else None for number in numbers]
    for ours, theirs in (
        (shards.column(texts, pa.string()), pa.array(texts, pa.string())),
        (shards.column(numbers, pa.int32()), pa.array(numbers, pa.int32())),
        (shards.list_array(arrays, pa.float16()), pa.array(arrays, pa.list_(pa.float16()))),
    ):
        ours.validate(full=True)
        assert ours.equals(theirs)


@pytest.mark.integration
def test_what_prepare_imports_stays_light(recipe_file: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    A whole run needs neither datasets nor the generation and training half of transformers: seconds of every start.
    """
    program = (
        "import sys, pathlib; from kidspeech.config import load_recipe; from kidspeech.dataset import build_dataset;"
        "recipe, manifest, out, *folders = map(pathlib.Path, sys.argv[1:]);"
        "build_dataset(load_recipe(recipe), [manifest], folders, out);"
        "print({'datasets', 'accelerate', 'transformers.modeling_utils', 'transformers.generation.utils'} & set(sys.modules))"
    )
    arguments = map(str, [recipe_file, corpus.manifest, tmp_path / "DATA", *corpus.audio_dirs])
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == "set()"
