"""
Export: faster-whisper's engine says the same words.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kidspeech.errors import InputError
from kidspeech.export import export_ctranslate2
from kidspeech.features import read_audio
from kidspeech.metrics import read_predictions
from kidspeech.predict import predict

pytestmark = [pytest.mark.integration, pytest.mark.slow]
CLIPS = 3


def test_ctranslate2_says_the_same_words(shared: Path, tmp_path: Path) -> None:
    """
    Real weights, real children, greedy, float32: word for word what predict says with the padded context.
    """
    ctranslate2 = pytest.importorskip("ctranslate2", reason="the extra ctranslate2 is not installed")
    checkpoint = str(shared / "models" / "whisper-tiny.en")
    export_ctranslate2(checkpoint, tmp_path / "ct2")
    records = (shared / "kids" / "train_word_transcripts.jsonl").read_text(encoding="utf-8").splitlines()[:CLIPS]
    (tmp_path / "m.jsonl").write_text("\n".join(records) + "\n", encoding="utf-8")
    folders = [shared / "kids" / f"audio_{number}" for number in range(3)]
    texts = read_predictions(predict(checkpoint, [tmp_path / "m.jsonl"], folders, tmp_path / "p.jsonl").out)

    from transformers import WhisperProcessor

    processor = WhisperProcessor.from_pretrained(tmp_path / "ct2")
    engine = ctranslate2.models.Whisper(str(tmp_path / "ct2"), device="cpu", compute_type="float32", intra_threads=1)
    said = {}
    for record in map(json.loads, records):
        (path,) = [place for folder in folders if (place := folder / Path(record["audio_path"]).name).is_file()]
        samples = read_audio(path.read_bytes()).samples
        features = processor(samples, sampling_rate=16_000, return_tensors="np").input_features.astype(np.float32)
        prompt = processor.tokenizer.prefix_tokens
        (result,) = engine.generate(ctranslate2.StorageView.from_array(features), [prompt], beam_size=1)
        said[record["utterance_id"]] = processor.tokenizer.decode(result.sequences_ids[0], skip_special_tokens=True).strip()

    assert said == texts
    assert len(set(texts.values())) == CLIPS
    with pytest.raises(InputError, match="exists"):
        export_ctranslate2(checkpoint, tmp_path / "ct2")
    with pytest.raises(InputError, match="no quantization 'int3'"):
        export_ctranslate2(checkpoint, tmp_path / "other", "int3")
