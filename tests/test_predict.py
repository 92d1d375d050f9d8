"""
Predict: every utterance gets a line, in order, whatever its audio; and a killed run goes on.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers

from kidspeech import read_ahead
from kidspeech.checkpoint import read_best
from kidspeech.config import Decode, load_recipe
from kidspeech.dataset import build_dataset
from kidspeech.errors import AudioError, CheckpointError, ManifestError, RecipeError
from kidspeech.features import LogMel, read_audio
from kidspeech.guards import Decoded
from kidspeech.manifest import read_manifest
from kidspeech.metrics import read_predictions, score
from kidspeech.models import Batch
from kidspeech.models.whisper import WhisperModel
from kidspeech.predict import Predicted, listen, predict
from kidspeech.reading import KILLS
from kidspeech.train import train
from kidspeech.transcribe import NO_ROOM

from corpora import Corpus
from dying import Deadly

pytestmark = pytest.mark.integration


@pytest.fixture(name="best")
def _best(recipe_file: Path, corpus: Corpus, tmp_path: Path) -> Path:
    recipe = load_recipe(recipe_file, ["train.max_steps=4"])
    build_dataset(recipe, [corpus.manifest], corpus.audio_dirs, tmp_path / "DATA")
    train(recipe, tmp_path / "DATA", tmp_path / "RUN")
    return tmp_path / "RUN" / "best"


def run(best: Path, corpus: Corpus, out: Path, *overrides: str) -> Predicted:
    return predict(str(best), [corpus.manifest], corpus.audio_dirs, out, overrides=overrides)


def test_predictions_are_the_manifests_lines_and_score_what_training_measured(
    best: Path, corpus: Corpus, tmp_path: Path
) -> None:
    """
    Prediction of the validation children gives the WER that training wrote down, to the last digit.
    """
    held = Corpus(tmp_path / "DATA" / "validation.jsonl", corpus.audio_dirs)
    result = run(best, held, tmp_path / "predictions.jsonl")
    texts = read_predictions(tmp_path / "predictions.jsonl")
    info = read_best(best)

    assert list(texts) == [record["utterance_id"] for record in held.records]
    assert info is not None
    assert score(texts, read_manifest(held.manifest)).figure == info.wer
    assert (result.context, result.skipped, result.notes) == ("trimmed", [], [])


def test_children_it_was_trained_on_are_told(best: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    Predicting the whole manifest says how much of it means nothing.
    """
    (note,) = run(best, corpus, tmp_path / "predictions.jsonl").notes

    assert note.startswith("18 of 27 utterances are by children this checkpoint was trained on")


def test_one_bad_file_costs_one_line(best: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    A broken, a missing and a changed file are predicted as the empty string and listed; the others are as ever.
    """
    whole = run(best, corpus, tmp_path / "whole.jsonl")
    (corpus.audio_dirs[0] / "U_002.flac").write_bytes(b"noise")
    (corpus.audio_dirs[1] / "U_003.flac").unlink()
    result = run(best, corpus, tmp_path / "predictions.jsonl")
    then, now = read_predictions(whole.out), read_predictions(result.out)
    listed = (tmp_path / "predictions.jsonl.skipped.jsonl").read_text(encoding="utf-8").splitlines()

    assert sorted(json.loads(line)["utterance_id"] for line in listed) == ["U_002", "U_003"]
    assert now == then | {"U_002": "", "U_003": ""}


def test_a_killed_run_goes_on_and_ends_the_same(
    best: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    What was transcribed before the kill is not transcribed again, and a torn last line is; the bytes are an unbroken run's.
    """
    (corpus.audio_dirs[0] / "U_004.flac").write_bytes(b"noise")
    whole = run(best, corpus, tmp_path / "whole.jsonl", "decode.batch_seconds=2")
    decoded: list[int] = []
    original = WhisperModel.decode

    def dying(self: WhisperModel, batch: Batch, settings: Decode) -> list[Decoded]:
        decoded.append(len(batch["seconds"]))
        if len(decoded) == 4:
            raise KeyboardInterrupt
        return original(self, batch, settings)

    monkeypatch.setattr(WhisperModel, "decode", dying)
    with pytest.raises(KeyboardInterrupt):
        run(best, corpus, tmp_path / "predictions.jsonl", "decode.batch_seconds=2")
    (part,) = tmp_path.glob(".predictions.jsonl.*.part")
    with part.open("a", encoding="utf-8") as torn:
        torn.write('{"utterance_id": "U_0')
    before = sum(decoded[:3])
    result = run(best, corpus, tmp_path / "predictions.jsonl", "decode.batch_seconds=2")

    assert result.out.read_bytes() == whole.out.read_bytes()
    assert (result.skipped, result.guards) == (whole.skipped, whole.guards)
    assert sum(decoded[4:]) == 26 - before
    assert not list(tmp_path.glob("*.part"))


def test_a_batch_that_does_not_fit_is_split(
    best: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Out of memory above four clips: halves, quarters, the same words; a clip that never fits is listed and the run goes on.
    """
    expected = read_predictions(run(best, corpus, tmp_path / "whole.jsonl").out)
    sizes: list[int] = []
    original = WhisperModel.decode

    def small(self: WhisperModel, batch: Batch, settings: Decode) -> list[Decoded]:
        sizes.append(len(batch["seconds"]))
        if sizes[-1] > 4 or max(batch["seconds"]) >= longest:
            raise torch.OutOfMemoryError
        return original(self, batch, settings)

    monkeypatch.setattr(WhisperModel, "decode", small)
    longest = 99.0
    assert read_predictions(run(best, corpus, tmp_path / "split.jsonl").out) == expected
    assert sizes[0] == 27
    longest = 1.0
    result = run(best, corpus, tmp_path / "some.jsonl")
    without = {record["utterance_id"] for record in corpus.records if record["audio_duration_sec"] == 1.0}
    assert {entry.utterance_id: entry.reason for entry in result.skipped} == dict.fromkeys(without, NO_ROOM)


def test_a_file_that_kills_its_reader_costs_one_line(
    best: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Read in processes: what takes a reader down is tried alone, listed, and the words of the others stay.
    """
    expected = read_predictions(run(best, corpus, tmp_path / "whole.jsonl").out)
    monkeypatch.setattr(read_ahead, "FEW", 0)
    monkeypatch.setattr(LogMel, "__reduce__", lambda self: (Deadly, (self.filters, self.max_seconds)), raising=False)
    result = run(best, corpus, tmp_path / "predictions.jsonl", "decode.batch_seconds=6")
    killers = {entry.utterance_id for entry in result.skipped}

    assert killers == {record["utterance_id"] for record in corpus.records if record["audio_duration_sec"] == 0.9}
    assert {entry.reason for entry in result.skipped} == {f"audio {KILLS}"}
    assert read_predictions(result.out) == expected | dict.fromkeys(killers, "")


def test_lines_come_in_the_order_asked_for(best: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    A submission format gives the order; what it has and no manifest does is refused before any work.
    """
    names = [record["utterance_id"] for record in corpus.records][::-1][:20]
    wanted = tmp_path / "submission_format.jsonl"
    wanted.write_text("".join(json.dumps({"utterance_id": name}) + "\n" for name in names), encoding="utf-8")
    result = predict(str(best), [corpus.manifest], corpus.audio_dirs, tmp_path / "p.jsonl", order=wanted)

    assert list(read_predictions(result.out)) == names
    wanted.write_text('{"utterance_id": "U_999"}\n', encoding="utf-8")
    with pytest.raises(ManifestError, match="U_999 is in no manifest"):
        predict(str(best), [corpus.manifest], corpus.audio_dirs, tmp_path / "p.jsonl", order=wanted)


def test_guards_show_and_can_be_switched_off(best: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    A random network babbles: nearly all its clips hit the cap; silence gets words only with the guard off.
    """
    soundfile.write(corpus.audio_dirs[0] / "U_000.flac", np.zeros(8000), 16_000)
    quiet = corpus.rewrite(lambda records: [record | {"md5_hash": None, "filesize_bytes": None} for record in records])
    guarded = run(best, quiet, tmp_path / "a.jsonl")
    off = ("decode.silence=null", "decode.max_repeats=null", "decode.max_tokens_per_second=null")
    free = run(best, quiet, tmp_path / "b.jsonl", *off)

    assert guarded.guards["silence"] == 1
    assert read_predictions(guarded.out)["U_000"] == ""
    assert guarded.guards["cap"] > 20
    assert free.guards["silence"] == free.guards["loop"] == 0
    assert len(read_predictions(free.out)["U_001"]) > len(read_predictions(guarded.out)["U_001"])


def test_a_quick_listen_says_what_predict_says(best: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    Audio bytes in, the prediction's text out.
    """
    texts = read_predictions(run(best, corpus, tmp_path / "p.jsonl", "decode.batch_seconds=0.1").out)
    paths = [corpus.audio_dirs[0] / "U_002.flac", corpus.audio_dirs[1] / "U_003.flac"]

    assert listen(str(best), [path.read_bytes() for path in paths]) == [texts["U_002"], texts["U_003"]]
    with pytest.raises(AudioError, match="not readable as audio"):
        listen(str(best), [b"noise"])


def test_plain_transformers_agrees_word_for_word(best: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    best/ in plain transformers gives the transcripts that kidspeech gives with the padded context.
    """
    texts = read_predictions(
        run(
            best,
            corpus,
            tmp_path / "p.jsonl",
            "decode.context=padded",
            "decode.max_tokens_per_second=99",
            "decode.max_repeats=null",
        ).out
    )
    network = transformers.WhisperForConditionalGeneration.from_pretrained(best).eval()
    processor = transformers.WhisperProcessor.from_pretrained(best)
    for folder in corpus.audio_dirs:
        for path in sorted(folder.iterdir())[:3]:
            samples = read_audio(path.read_bytes()).samples
            features = processor(samples, sampling_rate=16_000, return_tensors="pt").input_features
            ids = network.generate(features, max_new_tokens=40)
            text = processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
            assert texts[path.stem].startswith(text) or text.startswith(texts[path.stem])


def test_a_checkpoint_not_of_ours_is_decoded_padded_unless_asked(best: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    A plain Whisper folder never saw a short context; asking for one by name is allowed, and noted.
    """
    (best / "kidspeech.json").unlink()

    assert run(best, corpus, tmp_path / "a.jsonl").context == "padded"
    asked = run(best, corpus, tmp_path / "b.jsonl", "decode.context=trimmed")
    assert asked.context == "trimmed"
    assert "can break it" in asked.notes[0]


def test_what_is_no_checkpoint_is_refused(corpus: Corpus, best: Path, tmp_path: Path) -> None:
    """
    A folder without a model, and a setting that does not exist.
    """
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        run(tmp_path, corpus, tmp_path / "p.jsonl")
    with pytest.raises(RecipeError, match=r"decode\.beams: no such setting"):
        run(best, corpus, tmp_path / "p.jsonl", "decode.beams=2")
