"""
Predict: every utterance gets a line, in order, whatever its audio; and a killed run goes on.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from kidspeech import predict as module
from kidspeech.checkpoint import read_best
from kidspeech.config import load_recipe
from kidspeech.dataset import build_dataset
from kidspeech.errors import CheckpointError, RecipeError
from kidspeech.manifest import read_manifest
from kidspeech.metrics import read_predictions, score
from kidspeech.predict import Predicted, predict
from kidspeech.train import train

from corpora import Corpus

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
    What was transcribed before the kill is not transcribed again, and a torn last line is.
    """
    expected = run(best, corpus, tmp_path / "whole.jsonl", "decode.batch_seconds=2").out.read_bytes()
    counted = []
    original = module._decode

    def dying(examples, *arguments, **options):  # type: ignore[no-untyped-def]
        for number, made in enumerate(original(examples, *arguments, **options)):
            if number == 3 and not counted:
                raise KeyboardInterrupt
            yield made

    monkeypatch.setattr(module, "_decode", dying)
    with pytest.raises(KeyboardInterrupt):
        run(best, corpus, tmp_path / "predictions.jsonl", "decode.batch_seconds=2")
    (part,) = tmp_path.glob(".predictions.jsonl.*.part")
    part.write_text(part.read_text(encoding="utf-8") + '["U_0', encoding="utf-8")
    monkeypatch.setattr(
        module, "_decode", lambda examples, *a, **o: counted.append(len(examples)) or original(examples, *a, **o)
    )
    run(best, corpus, tmp_path / "predictions.jsonl", "decode.batch_seconds=2")

    assert (tmp_path / "predictions.jsonl").read_bytes() == expected
    assert 0 < counted[0] < 27
    assert not list(tmp_path.glob("*.part"))


def test_plain_transformers_agrees_word_for_word(best: Path, corpus: Corpus, tmp_path: Path) -> None:
    """
    best/ in plain transformers gives the transcripts that kidspeech gives with the padded context.
    """
    from kidspeech.features import read_audio

    texts = read_predictions(
        run(best, corpus, tmp_path / "p.jsonl", "decode.context=padded", "decode.max_tokens_per_second=99").out
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
