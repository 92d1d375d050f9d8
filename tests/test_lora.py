"""
LoRA: starts as the base, trains its matrices only, resumes exactly, and ends as plain weights.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from kidspeech.averaging import average
from kidspeech.checkpoint import read_best
from kidspeech.collate import Collator
from kidspeech.config import Decode, Model, Recipe, load_recipe, validate
from kidspeech.dataset import build_dataset
from kidspeech.errors import CheckpointError, RecipeError
from kidspeech.features import read_audio
from kidspeech.models import Batch
from kidspeech.models.lora import PROJECTIONS, load_adapter
from kidspeech.models.whisper import WhisperModel
from kidspeech.train import train

from corpora import TINY, Corpus, make_corpus

pytestmark = pytest.mark.integration


def make_base(folder: Path) -> Path:
    """
    Write a checkpoint to adapt, of a tiny random Whisper.
    """
    plain = ["model.pretrained=null", "model.language=null", f"model.random={TINY}"]
    torch.manual_seed(0)
    model = WhisperModel(load_recipe("whisper-small", plain).model)
    model.load()
    model.save(folder / "BASE")
    return folder / "BASE"


def loaded(source: Path, **settings: object) -> WhisperModel:
    model = WhisperModel(Model(pretrained=str(source), **settings))  # type: ignore[arg-type]
    model.load()
    model.network.eval()
    return model


def batch_of(model: WhisperModel, folders: list[Path]) -> Batch:
    clips = [read_audio(path.read_bytes()) for folder in folders for path in sorted(folder.iterdir())[:4]]
    rows = [
        {"input_features": torch.from_numpy(model.featurizer(clip.samples)).half().numpy().ravel(), "seconds": clip.seconds}
        for clip in clips
    ]
    return Collator(80, lambda longest: model.frames(longest, padded=False))(rows)


def logits(model: WhisperModel, batch: Batch) -> torch.Tensor:
    prompt = torch.tensor([model.prompt] * len(batch["seconds"]))
    with torch.inference_mode():
        return model.network(input_features=batch["input_features"], decoder_input_ids=prompt).logits


def test_it_starts_as_the_base(tmp_path: Path, corpus: Corpus) -> None:
    """
    Before the first step the outputs are the base's to the bit, through our short context too.
    """
    base = make_base(tmp_path)
    plain, adapted = loaded(base), loaded(base, lora_rank=4)
    batch = batch_of(plain, corpus.audio_dirs)

    assert torch.equal(logits(plain, batch), logits(adapted, batch))


@pytest.mark.parametrize(("frozen", "layers"), [(False, 16), (True, 10)])
def test_every_projection_is_adapted_and_nothing_else_trained(tmp_path: Path, frozen: bool, layers: int) -> None:
    """
    One encoder layer has six projections and one decoder layer ten; of each only LoRA's two matrices are trained.
    """
    model = loaded(make_base(tmp_path), lora_rank=4, freeze_encoder=frozen)
    trained = [name for name, parameter in model.network.named_parameters() if parameter.requires_grad]

    assert len(trained) == 2 * layers
    assert all(".lora_" in name for name in trained)


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    A folder with BASE, the dataset DATA, and RUN, trained on it with LoRA for six steps.
    """
    folder = tmp_path_factory.mktemp("lora")
    corpus = make_corpus(folder / "corpus")
    make_base(folder)
    build_dataset(recipe_of(folder), [corpus.manifest], corpus.audio_dirs, folder / "DATA", cache=folder / "cache")
    train(recipe_of(folder), folder / "DATA", folder / "RUN")
    return folder


def recipe_of(folder: Path) -> Recipe:
    settings = {
        "data": {"val_ratio": 0.34, "split_tolerance": 0.2, "workers": 1},
        "model": {"pretrained": str(folder / "BASE"), "lora_rank": 4, "lora_alpha": 8.0, "dropout": 0.1},
        "train": {"epochs": 2.0, "effective_batch": "6 clips", "learning_rate": 0.03, "save_every": 2, "save_total_limit": 9},
    }
    recipe, problems = validate(settings)
    assert recipe is not None, problems
    return recipe


def trained(run: Path) -> WhisperModel:
    """
    Return the live model as it was after the last step.
    """
    model = loaded(run / "BASE", lora_rank=4, lora_alpha=8.0)
    load_adapter(model.network, run / "RUN" / "step-000006")
    return model


def test_only_adapters_change_and_are_kept(run: Path) -> None:
    """
    Step folders hold peft's files instead of all weights; merged, embeddings, norms and convolutions are the base's.
    """
    trained(run).save(run / "TRAINED")
    base, best = (load_file(run / name / "model.safetensors") for name in ("BASE", "TRAINED"))
    changed = {name for name in base if not torch.equal(base[name], best[name])}
    settings = json.loads((run / "RUN" / "step-000006" / "adapter_config.json").read_text(encoding="utf-8"))

    assert base.keys() == best.keys()
    assert changed == {name for name in base if name.endswith(tuple(f"{projection}.weight" for projection in PROJECTIONS))}
    assert not list((run / "RUN").glob("step-*/model.safetensors"))
    assert settings["base_model_name_or_path"] == str(run / "BASE")


def test_best_in_plain_transformers_says_what_the_live_model_says(run: Path) -> None:
    """
    The adapters of the last step beside the base give the text and, to float32's accuracy, the logits of them merged.
    """
    live = trained(run)
    live.save(run / "MERGED")
    plain = loaded(run / "MERGED")
    batch = batch_of(live, [run / "corpus" / "audio_0", run / "corpus" / "audio_1"])
    network = transformers.WhisperForConditionalGeneration.from_pretrained(run / "MERGED")
    weights = network.state_dict()

    torch.testing.assert_close(logits(live, batch), logits(plain, batch), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(live, batch), logits(loaded(run / "BASE"), batch), atol=1e-3)
    assert live.generate(batch, Decode()) == plain.generate(batch, Decode())
    assert all(torch.equal(weights[name], tensor) for name, tensor in plain.network.state_dict().items())


def test_the_live_model_is_not_touched_by_saving(run: Path, tmp_path: Path) -> None:
    """
    Not a bit of it: a run goes on after best/ is written.
    """
    live = trained(run)
    before = {name: tensor.clone() for name, tensor in live.network.state_dict().items()}
    live.save(tmp_path / "SAVED")
    after = live.network.state_dict()

    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_that_was_cut_off_ends_in_the_same_bits(run: Path, tmp_path: Path) -> None:
    """
    With dropout, from the adapters of step 2 on.
    """
    again = tmp_path / "RUN"
    shutil.copytree(run / "RUN", again)
    (again / "run.json").unlink()
    for step in (3, 4, 6):
        shutil.rmtree(again / f"step-{step:06d}")
    train(recipe_of(run), run / "DATA", again)

    for name in ("step-000006/adapter_model.safetensors", "best/model.safetensors"):
        whole, cut = load_file(run / "RUN" / name), load_file(again / name)
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_peft_reads_a_step_folder_and_average_takes_it(run: Path, tmp_path: Path) -> None:
    """
    peft's own merge of the adapter is our export, and the mean of the step with itself too, to float32's accuracy.
    """
    step = run / "RUN" / "step-000006"
    base = transformers.WhisperForConditionalGeneration.from_pretrained(run / "BASE", dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(base, step).merge_and_unload().state_dict()
    info = average([str(step), str(step)], tmp_path / "OUT")
    mean = load_file(tmp_path / "OUT" / "model.safetensors")
    best = read_best(run / "RUN" / "best")

    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-5, atol=1e-6)
    assert best is not None
    assert info.train_children == best.train_children
    assert info.recipe["model"]["context"] == "trimmed"


def test_lora_without_weights_or_without_peft_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Random weights have nothing to adapt; a missing package is named with the command that brings it.
    """
    with pytest.raises(RecipeError, match=r"model\.lora_rank: adapts the weights of model\.pretrained"):
        load_recipe("demo", ["model.lora_rank=4"])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RecipeError, match=r'pip install "kidspeech\[lora\]"'):
        loaded(run / "BASE", lora_rank=4)


def test_adapters_of_another_shape_are_not_taken(run: Path) -> None:
    """
    Those of a run whose encoder was not frozen do not fit one where it is.
    """
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors holds other matrices"):
        load_adapter(loaded(run / "BASE", lora_rank=4, freeze_encoder=True).network, run / "RUN" / "step-000006")
