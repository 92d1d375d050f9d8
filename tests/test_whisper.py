"""
Whisper through our short context: the same network, the same loss, the same words.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from kidspeech.collate import Collator, with_silence
from kidspeech.config import Decode, Model, load_recipe
from kidspeech.errors import CheckpointError, RecipeError
from kidspeech.features import read_audio
from kidspeech.models import IGNORED, Batch, create_model
from kidspeech.models.whisper import WhisperModel
from kidspeech.models.whisper_decoding import GreedyDecoder, Slots

from corpora import END, START, TINY

TEXTS = ("a red ball", "I goed there", "one two three four five six seven eight")


def tiny(**settings: object) -> WhisperModel:
    recipe = load_recipe("whisper-small", ["model.pretrained=null", "model.language=null", f"model.random={TINY}"])
    torch.manual_seed(0)
    model = WhisperModel(recipe.model.model_copy(update=settings))
    model.load()
    return model


def batch_of(model: WhisperModel, lengths: tuple[int, ...] = (90, 120, 70), *, padded: bool = False) -> Batch:
    random = np.random.default_rng(0)
    rows = [
        {
            "input_features": random.standard_normal(80 * frames).astype(np.float16),
            "labels": np.array(model.labels([text])[0]),
            "seconds": frames / 100,
        }
        for frames, text in zip(lengths, TEXTS, strict=True)
    ]
    return Collator(80, lambda longest: model.frames(longest, padded=padded))(rows)


@pytest.mark.unit
def test_loss_is_the_sum_over_text_tokens_of_transformers_own_logits() -> None:
    """
    Plain Whisper's shift, the prompt without loss, a sum instead of a mean: computed here by hand on padded clips.
    """
    model = tiny()
    batch = batch_of(model, padded=True)
    plain = transformers.WhisperForConditionalGeneration(model.network.config)
    plain.load_state_dict(model.network.state_dict())
    expected = 0.0
    for features, labels in zip(batch["input_features"], batch["labels"], strict=True):
        ids = [START, *labels[labels != IGNORED].tolist()]
        logits = plain(input_features=features[None], decoder_input_ids=torch.tensor([ids[:-1]])).logits[0]
        expected += float(functional.cross_entropy(logits[1:], torch.tensor(ids[2:]), reduction="sum").detach())

    assert float(model.loss(batch).detach()) == pytest.approx(expected, rel=1e-5)
    assert sum(model.n_targets(len(ids)) for ids in model.labels(TEXTS)) == sum(
        len(model.processor.tokenizer(f" {text}", add_special_tokens=False).input_ids) + 1 for text in TEXTS
    )


@pytest.mark.unit
def test_gradients_do_not_depend_on_how_a_step_is_cut() -> None:
    """
    One batch of three clips, or three of one: the same gradient to float32's accuracy.
    """
    gradients = []
    for pieces in ([(0, 1, 2)], [(0,), (1,), (2,)]):
        model = tiny()
        whole = batch_of(model, padded=True)
        targets = 30
        for piece in pieces:
            part = {key: whole[key][list(piece)] for key in ("input_features", "labels")}
            (model.loss(part) / targets).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.network.parameters() if p.grad is not None]))

    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


@pytest.mark.unit
def test_at_the_whole_window_the_encoder_is_transformers_own() -> None:
    """
    3000 frames in: the same numbers out, to the bit.
    """
    model = tiny()
    model.network.eval()
    plain = transformers.WhisperForConditionalGeneration(model.network.config).eval()
    plain.load_state_dict(model.network.state_dict())
    features = batch_of(model, padded=True)["input_features"]

    with torch.inference_mode():
        assert torch.equal(model.network.get_encoder()(features)[0], plain.get_encoder()(features)[0])


@pytest.mark.unit
def test_a_short_batch_has_a_short_context() -> None:
    """
    120 frames become 128 and 64 encoder states, not 3000 and 1500.
    """
    model = tiny()
    batch = batch_of(model)

    assert batch["input_features"].shape == (3, 80, 128)
    assert model.network.get_encoder()(batch["input_features"])[0].shape == (3, 64, 16)
    assert model.frames(2999, padded=False) == model.frames(1, padded=True) == 3000


@pytest.mark.unit
def test_padding_is_silence_and_labels_are_ignored() -> None:
    """
    Each clip is continued with its own minimum, each label row with what carries no loss.
    """
    model = tiny()
    batch = batch_of(model)

    assert (batch["input_features"][2, :, 70:] == batch["input_features"][2, :, :70].min()).all()
    assert (batch["labels"][0] == IGNORED).sum() == len(model.labels(TEXTS)[2]) - len(model.labels(TEXTS)[0])


@pytest.mark.unit
def test_silence_added_on_the_device_is_the_collators() -> None:
    """
    To the bit, whether a clip was already padded within its batch or not.
    """
    model = tiny()
    trimmed, padded = (batch_of(model, padded=padded)["input_features"] for padded in (False, True))

    assert torch.equal(with_silence(trimmed, 3000), padded)
    assert torch.equal(with_silence(trimmed, trimmed.shape[2]), trimmed)


@pytest.mark.unit
def test_dropout_really_is_in_the_modules() -> None:
    """
    Two passes in training differ with dropout and do not without; changing a loaded model's config would do nothing.
    """
    for rate, same in ((0.5, False), (0.0, True)):
        model = tiny(dropout=rate)
        model.network.train()
        batch = batch_of(model)
        assert (float(model.loss(batch).detach()) == float(model.loss(batch).detach())) is same


@pytest.mark.unit
def test_a_frozen_encoder_gets_no_gradient() -> None:
    """
    freeze_encoder leaves the decoder to train, and the encoder's positions are never trained.
    """
    model = tiny(freeze_encoder=True)
    model.loss(batch_of(model)).backward()
    trained = {name for name, parameter in model.network.named_parameters() if parameter.grad is not None}

    assert trained
    assert not any(name.startswith("model.encoder") for name in trained)
    assert "model.encoder.embed_positions.weight" not in {n for n, p in tiny().network.named_parameters() if p.requires_grad}


@pytest.mark.unit
def test_checkpointing_changes_no_gradient() -> None:
    """
    Recomputed activations give the same gradients.
    """
    gradients = []
    for checkpointing in (False, True):
        model = tiny(gradient_checkpointing=checkpointing)
        model.network.train()
        model.loss(batch_of(model)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.network.parameters() if p.grad is not None]))

    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.unit
def test_no_clip_gets_more_tokens_than_its_length_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A random network would babble to 448 tokens; half a second at 8 tokens a second ends after 8 + 4, greedily or by beams.
    """
    model = tiny()
    model.network.eval()
    made: list[list[int]] = []
    monkeypatch.setattr(model.processor.tokenizer, "batch_decode", lambda ids, **_: [made.append(row) or "" for row in ids])
    for beams in (1, 3):
        model.generate(batch_of(model, (50, 300, 100)), Decode(num_beams=beams))
    counts = [sum(token != END for token in ids) for ids in made]

    assert all(count <= 8 + math.ceil(seconds * 8) for count, seconds in zip(counts, (0.5, 3.0, 1.0) * 2, strict=True))
    assert max(counts) > 8


@pytest.mark.unit
@pytest.mark.parametrize("recorded", [False, True])
def test_our_loop_makes_generates_tokens(recorded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Batch after batch of many shapes, with tokens that must not come and caps of their own: token for token transformers'
    greedy generate. Recorded steps are played here by running them, since a CPU has no CUDA graphs.
    """
    model = tiny()
    model.network.eval()
    suppress, first = list(range(300, 500)), [END, 220]
    model.network.generation_config.suppress_tokens, model.network.generation_config.begin_suppress_tokens = suppress, first
    decoder = GreedyDecoder(model.network, model.prompt, END, suppress, first, graphs=recorded)
    replayed: list[int] = []
    monkeypatch.setattr(GreedyDecoder, "_record", lambda self, slots: _Played(self, slots, replayed))
    random = np.random.default_rng(1)
    for number, rows in enumerate((3, 9, 9, 5, 9, 9)):
        lengths = [600 if number == 4 else 90] * 1 + random.integers(30, 90, rows - 1).tolist()
        caps = random.integers(1, 40, rows).tolist()
        features = Collator(80, lambda longest: model.frames(longest, padded=False))(
            [{"input_features": random.standard_normal(80 * frames), "seconds": 1.0} for frames in lengths]
        )["input_features"]
        with torch.inference_mode():
            encoded = model.network.get_encoder()(features)
            theirs = model._beams(encoded, caps, 1)
        ours = decoder(encoded.last_hidden_state, caps)

        assert [ids + [END] * (max(map(len, theirs)) - len(ids)) for ids in ours] == theirs
        assert all(len(ids) <= cap for ids, cap in zip(ours, caps, strict=True))
    assert bool(replayed) == recorded


class _Played:
    """
    Stands in for a CUDA graph: replaying runs the step.
    """

    def __init__(self, decoder: GreedyDecoder, slots: Slots, replayed: list[int]) -> None:
        self.decoder, self.slots, self.replayed = decoder, slots, replayed

    def replay(self) -> None:
        self.replayed.append(self.slots.layout.rows)
        self.decoder._step(self.slots)


@pytest.mark.unit
def test_a_trained_network_is_decoded_with_its_weights_of_the_moment() -> None:
    """
    Validation decodes again and again while the weights change in place.
    """
    model, batch = tiny(), batch_of(tiny())
    model.network.eval()
    before = model.generate(batch, Decode(max_repeats=None))
    with torch.no_grad():
        model.network.model.decoder.embed_tokens.weight.copy_(torch.randn(1107, 16))
    fresh = tiny()
    fresh.network.eval()
    fresh.network.load_state_dict(model.network.state_dict())

    assert model.generate(batch, Decode(max_repeats=None)) == fresh.generate(batch, Decode(max_repeats=None)) != before


@pytest.mark.unit
def test_unknown_models_and_settings_are_refused_with_what_there_is() -> None:
    """
    A family, a size and a language that do not exist or fit are named.
    """
    with pytest.raises(RecipeError, match="no model 'whispr'; there are whisper"):
        create_model(Model(family="whispr", pretrained="x"))
    with pytest.raises(RecipeError, match=r"model\.pretrained: give"):
        create_model(Model())
    with pytest.raises(RecipeError, match="WhisperConfig has no d_modle"):
        create_model(Model(random={"d_modle": 8})).load()


@pytest.mark.integration
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """
    An empty folder and a Hub id without a network name themselves and the remedy.
    """
    for source in (str(tmp_path), "openai/whisper-none"):
        with pytest.raises(CheckpointError, match="no Whisper checkpoint at"):
            _ = create_model(Model(pretrained=source)).featurizer


@pytest.mark.integration
def test_language_must_fit_the_vocabulary(shared: Path) -> None:
    """
    An English-only checkpoint takes no language.
    """
    source = str(shared / "models" / "whisper-tiny.en")

    with pytest.raises(RecipeError, match="this checkpoint knows English only"):
        _ = create_model(Model(pretrained=source, language="en")).featurizer


@pytest.mark.integration
def test_real_weights_give_transformers_own_words(shared: Path) -> None:
    """
    Padded, our generation is Whisper's own on real children, word for word.
    """
    source = str(shared / "models" / "whisper-tiny.en")
    model = WhisperModel(Model(pretrained=source))
    model.load()
    model.network.eval()
    plain = transformers.WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    clips = [read_audio(path.read_bytes()) for path in sorted((shared / "kids" / "audio_0").iterdir())[:6]]
    rows = [{"input_features": model.featurizer(c.samples).astype(np.float16).ravel(), "seconds": c.seconds} for c in clips]
    batch = Collator(80, lambda longest: model.frames(longest, padded=True))(rows)
    ours = model.generate(batch, Decode(max_tokens_per_second=None, max_repeats=None, silence=None))
    with torch.inference_mode():
        theirs = model.processor.batch_decode(plain.generate(batch["input_features"]), skip_special_tokens=True)

    assert ours == [text.strip() for text in theirs]
