"""
Submissions: the words of `kidspeech predict` from a zip that stands alone, and a complete file whatever happens.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from kidspeech.checkpoint import BestInfo, best_folder
from kidspeech.config import as_dict, load_recipe
from kidspeech.errors import CheckpointError, RecipeError, SubmissionError
from kidspeech.metrics import read_predictions
from kidspeech.models import create_model
from kidspeech.predict import predict
from kidspeech.submission import check, needed, pack

from corpora import tone

pytestmark = pytest.mark.integration
CONTAINER = Path(__file__).resolve().parents[1] / ".nox" / "container" / "bin" / "python"
LENGTHS = (0.1, 0.5, 1.3, 4.0, 11.0, 30.0)


@pytest.fixture(name="checkpoint")
def _checkpoint(recipe_file: Path, tmp_path: Path) -> Path:
    """
    A random network as a run leaves it in best/, trained trimmed.
    """
    recipe = load_recipe(recipe_file)
    torch.manual_seed(0)
    model = create_model(recipe.model)
    model.load()
    with best_folder(tmp_path, BestInfo(as_dict(recipe), 1, 1.0, {}, "", [])) as folder:
        model.save(folder)
    return tmp_path / "best"


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> Path:
    """
    The contest's folder: clips of 0.1 to 30 s, one that is no audio, one that is missing, and a format in another order.
    """
    folder = tmp_path / "data"
    records = []
    for number, seconds in enumerate(LENGTHS):
        tone(folder / "audio" / f"U_{number}.flac", seconds=seconds, pitch=200 + 50 * number)
        records.append({"utterance_id": f"U_{number}", "audio_path": f"audio/U_{number}.flac", "audio_duration_sec": seconds})
    (folder / "audio" / "U_bad.flac").write_bytes(b"fLaC, and then noise")
    records += [{"utterance_id": f"U_{name}", "audio_path": f"audio/U_{name}.flac"} for name in ("bad", "gone")]
    _write(folder / "utterance_metadata.jsonl", records)
    _write(folder / "submission_format.jsonl", [
        {"utterance_id": record["utterance_id"], "orthographic_text": ""} for record in records[::-1]
    ])  # fmt: skip
    return folder


def _write(path: Path, records: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_a_zip_gives_predicts_words_under_the_containers_versions(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """
    Unpacked, without a network, under transformers 4.57.6: the format's lines, the words of predict, a short log.
    """
    if not CONTAINER.is_file():
        pytest.skip("no virtual environment with the container's versions: `nox -s container` makes it")
    archive = pack(checkpoint, tmp_path / "submission.zip").path
    checked = check(archive, data, python=CONTAINER)
    predicted = predict(str(checkpoint), [data / "utterance_metadata.jsonl"], [data], tmp_path / "p.jsonl")

    assert list(checked.texts) == ["U_gone", "U_bad", *(f"U_{number}" for number in reversed(range(len(LENGTHS))))]
    assert checked.texts == read_predictions(predicted.out)
    assert checked.empty == 2
    assert len(checked.log.splitlines()) < 10


def test_a_zip_carries_what_it_imports_and_nothing_more(checkpoint: Path, tmp_path: Path) -> None:
    """
    Not the training, not the command line, no package the container lacks.
    """
    packed = pack(checkpoint, tmp_path / "submission.zip")
    names = zipfile.ZipFile(packed.path).namelist()
    lacking = {"accelerate", "datasets", "evaluate", "filelock", "jiwer", "pyarrow", "rich", "typer", "whisper"}
    with zipfile.ZipFile(packed.path) as archive:
        source = "".join(archive.read(name).decode() for name in packed.modules)

    assert names[0] == "main.py"
    assert "checkpoint/model.safetensors" in names
    assert not {"kidspeech/train.py", "kidspeech/cli/main.py", "kidspeech/shards.py"} & set(names)
    assert not [name for name in lacking if f"import {name}\n" in source or f"from {name} " in source]


def test_the_file_is_complete_when_the_clock_runs_out(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """
    No minutes at all: every line is there, without words, and the exit code is 0.
    """
    archive = pack(checkpoint, tmp_path / "submission.zip", minutes=0.0).path
    checked = check(archive, data)

    assert (checked.lines, checked.empty) == (len(LENGTHS) + 2, len(LENGTHS) + 2)


def test_the_file_is_complete_when_the_weights_are_broken(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """
    What stops everything is one line of log.
    """
    (checkpoint / "model.safetensors").write_bytes(b"")
    checked = check(pack(checkpoint, tmp_path / "submission.zip").path, data)

    assert checked.empty == checked.lines
    assert "stopped by" in checked.log


def test_a_phonetic_format_is_answered_in_its_field(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """
    The field is the format's own.
    """
    _write(data / "submission_format.jsonl", [{"utterance_id": "U_2", "phonetic_text": ""}])
    archive = pack(checkpoint, tmp_path / "submission.zip").path

    assert check(archive, data).texts["U_2"]


def test_what_can_not_be_packed_or_is_no_submission_is_refused(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """
    A Hub id, a wrong setting, a zip without main.py, one that answers something else.
    """
    with pytest.raises(CheckpointError, match="no network"):
        pack(Path("openai/whisper-none"), tmp_path / "submission.zip")
    with pytest.raises(RecipeError, match=r"decode\.beams"):
        pack(checkpoint, tmp_path / "submission.zip", overrides=["decode.beams=2"])
    for name, program, complaint in (
        ("other.py", "", "no main.py"),
        ("main.py", "raise SystemExit(3)", "exit code 3"),
        ("main.py", "open('submission/submission.jsonl', 'w').write('{}')", "does not have the lines"),
        ("main.py", "import urllib.request as u; u.urlopen('http://127.0.0.1:9', timeout=9)", "URLError"),
    ):
        with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
            archive.writestr(name, program)
        with pytest.raises(SubmissionError, match=complaint):
            check(tmp_path / "bad.zip", data)


@pytest.mark.unit
def test_imports_are_followed_to_the_end() -> None:
    """
    What is imported only inside functions comes along too, and what only predict needs does not.
    """
    files = needed("kidspeech.submission_main")

    assert {"kidspeech/__init__.py", "kidspeech/models/whisper_decoding.py", "kidspeech/checkpoint.py"} <= files
    assert "kidspeech/predict.py" not in files
