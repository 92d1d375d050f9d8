"""
Averaging: exact figures, nothing mixed that does not belong together, and a folder that plain transformers loads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings, strategies
from safetensors.torch import load_file, save_file

from kidspeech.averaging import average
from kidspeech.checkpoint import BestInfo, read_best, recipe_of, write_best
from kidspeech.cli.main import main
from kidspeech.config import as_dict, load_recipe
from kidspeech.dataset import build_dataset
from kidspeech.errors import CheckpointError
from kidspeech.models import create_model
from kidspeech.train import train
from kidspeech.weights import Layout, Weights, write_safetensors

from corpora import TINY, Corpus

pytestmark = pytest.mark.integration

FILE = "model.safetensors"
Maker = Callable[..., Path]


@pytest.fixture(name="checkpoint")
def _checkpoint(tmp_path: Path) -> Maker:
    """
    Write a checkpoint of a tiny random Whisper, as best/ of a run holds it.
    """

    def make(name: str, seed: int = 0, *overrides: str, children: tuple[str, ...] = ("C_0",)) -> Path:
        plain = ["model.pretrained=null", "model.language=null", f"model.random={TINY}"]
        recipe = load_recipe("whisper-small", [*plain, *overrides])
        torch.manual_seed(seed)
        model = create_model(recipe.model)
        model.load()
        model.save(tmp_path / name)
        write_best(tmp_path / name, BestInfo(as_dict(recipe), 3, 0.5, {}, "key", list(children)))
        return tmp_path / name

    return make


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    save_file(change(load_file(folder / FILE)), folder / FILE, metadata={"format": "pt"})
    return folder


def averaged(out: Path, *folders: Path, weights: list[float] | None = None) -> dict[str, torch.Tensor]:
    average([str(folder) for folder in folders], out, weights=weights)
    return load_file(out / FILE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [None, [0.1, 0.7, 3.3]])
def test_the_mean_of_copies_is_the_copy(
    checkpoint: Maker, tmp_path: Path, dtype: torch.dtype, weights: list[float] | None
) -> None:
    """
    Bit for bit, whatever the weights and the type.
    """
    folder = rewrite(checkpoint("A"), lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    before, after = load_file(folder / FILE), averaged(tmp_path / "OUT", folder, folder, folder, weights=weights)

    assert before.keys() == after.keys()
    assert all(after[name].dtype == dtype and torch.equal(after[name], before[name]) for name in before)


def test_the_mean_of_two_is_float64s_rounded_once(checkpoint: Maker, tmp_path: Path) -> None:
    """
    Three parts to one, and numbers that float32 sums get wrong.
    """

    def extreme(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.decoder.layer_norm.weight"][:3] = torch.tensor([1e30, 1.0, 1 + 2**-23])
        return tensors

    one, two = rewrite(checkpoint("A", 1), extreme), checkpoint("B", 2)
    after = averaged(tmp_path / "OUT", one, two, weights=[3, 1])
    left, right = load_file(one / FILE), load_file(two / FILE)

    for name, tensor in after.items():
        exact = (3 * left[name].double().numpy() + right[name].double().numpy()) / 4
        assert np.array_equal(tensor.numpy(), exact.astype(np.float32)), name


def test_plain_transformers_computes_with_the_mean(checkpoint: Maker, tmp_path: Path) -> None:
    """
    from_pretrained takes the folder; its tied output layer is the mean of the embeddings, which the file holds once.
    """
    one, two = checkpoint("A", 1), checkpoint("B", 2)
    # a step folder of another accelerate may hold the tied weights twice
    rewrite(two, lambda tensors: tensors | {"proj_out.weight": tensors["model.decoder.embed_tokens.weight"].clone()})
    after = averaged(tmp_path / "OUT", one, two)
    network = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "OUT")
    names = (one / FILE, two / FILE)
    expected = torch.stack([load_file(path)["model.decoder.embed_tokens.weight"].double() for path in names]).mean(0).float()

    assert "proj_out.weight" not in after
    assert torch.equal(network.proj_out.weight, expected)
    assert len(transformers.WhisperProcessor.from_pretrained(tmp_path / "OUT").tokenizer) == network.config.vocab_size


def test_a_half_precision_part_takes_the_others_type(checkpoint: Maker, tmp_path: Path) -> None:
    """
    A float16 checkpoint with a float32 one gives float32, and config.json says so, since transformers loads by it.
    """
    half = rewrite(checkpoint("A", 1), lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    config = json.loads((half / "config.json").read_text(encoding="utf-8")) | {"dtype": "float16"}
    (half / "config.json").write_text(json.dumps(config), encoding="utf-8")
    after = averaged(tmp_path / "OUT", half, checkpoint("B", 2))

    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert json.loads((tmp_path / "OUT" / "config.json").read_text(encoding="utf-8"))["dtype"] == "float32"


def test_whole_numbers_are_kept_where_they_agree_and_refused_where_not(checkpoint: Maker, tmp_path: Path) -> None:
    """
    The mean of two counters or of two ids would be neither.
    """

    def counting(number: int) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        return lambda tensors: tensors | {"count": torch.tensor(number), "mask": torch.tensor([True, False])}

    one, two = rewrite(checkpoint("A", 1), counting(7)), rewrite(checkpoint("B", 2), counting(7))
    after = averaged(tmp_path / "OUT", one, two)
    assert torch.equal(after["count"], torch.tensor(7))
    assert after["mask"].tolist() == [True, False]
    with pytest.raises(CheckpointError, match=r"B can't be averaged with .*A: count holds other whole numbers"):
        averaged(tmp_path / "NONE", one, rewrite(two, counting(8)))
    assert not (tmp_path / "NONE").exists()
    assert not list(tmp_path.glob(".NONE*"))


def test_what_does_not_belong_together_is_refused_with_what_differs(checkpoint: Maker, tmp_path: Path) -> None:
    """
    Sizes, heads (which no shape shows), vocabularies, missing tensors, contexts, and numbers that are none.
    """
    one = checkpoint("A")
    heads = TINY.replace("encoder_attention_heads: 2", "encoder_attention_heads: 4")
    cases = {
        "in config.json, d_model is 32, not 16": checkpoint(
            "D", 0, f"model.random={TINY.replace('d_model: 16', 'd_model: 32')}"
        ),
        "in config.json, encoder_attention_heads is 4, not 2": checkpoint("H", 0, f"model.random={heads}"),
        "in config.json, bos_token_id is 1001, not 1000, and ": checkpoint(
            "V", 0, f"model.random={TINY.replace('1107', '1108')}"
        ),
        "in its training, context is padded, not trimmed": checkpoint("P", 0, "model.context=padded"),
        "in its weights, model.encoder.conv1.bias is missing, not \\[16\\]": rewrite(
            checkpoint("M"), lambda tensors: {k: v for k, v in tensors.items() if k != "model.encoder.conv1.bias"}
        ),
        "N holds numbers in model.encoder.conv1.bias that are not finite": rewrite(
            checkpoint("N"), lambda tensors: tensors | {"model.encoder.conv1.bias": torch.full((16,), torch.nan)}
        ),
    }
    words = checkpoint("W")
    tokenizer = (words / "tokenizer.json").read_text(encoding="utf-8")
    swapped = tokenizer.replace('"Ġthe": 262', '"Ġthe": 284').replace('"Ġto": 284', '"Ġto": 262')
    (words / "tokenizer.json").write_text(swapped, encoding="utf-8")
    cases["in its vocabulary, Ġthe is 284, not 262, and 1 more"] = words

    for sentence, other in cases.items():
        with pytest.raises(CheckpointError, match=sentence):
            averaged(tmp_path / "OUT", one, other)
    assert not (tmp_path / "OUT").exists()


def test_what_is_no_checkpoint_is_refused_in_words(checkpoint: Maker, tmp_path: Path) -> None:
    """
    One alone, weights that do not count, a place that is taken, folders without weights, and a file cut off.
    """
    one = checkpoint("A")
    with pytest.raises(CheckpointError, match="two or more"):
        averaged(tmp_path / "OUT", one)
    for weights in ([1.0], [1.0, 0.0]):
        with pytest.raises(CheckpointError, match=r"weights for 2 checkpoints; give one above 0"):
            averaged(tmp_path / "OUT", one, one, weights=weights)
    with pytest.raises(CheckpointError, match="A is not empty"):
        averaged(one, one, one)
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere"):
        averaged(tmp_path / "OUT", one, tmp_path / "nowhere")
    bare = checkpoint("B")
    (bare / FILE).write_bytes((bare / FILE).read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="is no whole safetensors file"):
        averaged(tmp_path / "OUT", one, bare)
    (bare / FILE).unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        averaged(tmp_path / "OUT", one, bare)


def test_children_that_any_part_heard_count_as_heard(checkpoint: Maker, tmp_path: Path) -> None:
    """
    A WER on them says nothing; and the mean of means keeps them all.
    """
    one, two, three = (
        checkpoint(name, children=heard) for name, heard in zip("ABC", (("x", "y"), ("y", "z"), ("w",)), strict=True)
    )
    averaged(tmp_path / "AB", one, two, weights=[2, 1])
    averaged(tmp_path / "ABC", tmp_path / "AB", three)
    first, second = read_best(tmp_path / "AB"), read_best(tmp_path / "ABC")

    assert first is not None
    assert second is not None
    assert first.train_children == ["x", "y", "z"]
    assert second.train_children == ["w", "x", "y", "z"]
    assert list(first.averaged.values()) == pytest.approx([2 / 3, 1 / 3])
    assert first.wer is None
    assert recipe_of(str(tmp_path / "ABC"))[0].model.context == "trimmed"


def test_runs_and_their_steps_are_taken(corpus: Corpus, recipe_file: Path, tmp_path: Path) -> None:
    """
    Of a run best/, of a step folder its weights; from the command line to a checkpoint that predict decodes.
    """
    recipe, data, run = load_recipe(recipe_file), tmp_path / "DATA", tmp_path / "RUN"
    build_dataset(recipe, [corpus.manifest], corpus.audio_dirs, data)
    train(recipe, data, run)
    steps = [run / "step-000004", run / "step-000006"]
    main_(
        [
            "average",
            *map(str, steps),
            str(run),
            "--weight",
            "1",
            "--weight",
            "1",
            "--weight",
            "2",
            "--out",
            str(tmp_path / "OUT"),
        ]
    )
    parts = [load_file(path / FILE) for path in (*steps, run / "best")]
    after, info, best = load_file(tmp_path / "OUT" / FILE), read_best(tmp_path / "OUT"), read_best(run / "best")

    for name, tensor in after.items():
        first, second, third = (part[name].double() for part in parts)
        assert torch.equal(tensor, ((first + second + 2 * third) / 4).float())
    assert info is not None
    assert best is not None
    assert info.train_children == best.train_children
    main_(
        [
            "predict",
            str(tmp_path / "OUT"),
            str(data / "validation.jsonl"),
            *corpus.audio_options(),
            "--out",
            str(tmp_path / "p"),
        ]
    )
    assert len((tmp_path / "p").read_text(encoding="utf-8").splitlines()) == 9


def main_(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0


def test_adapters_are_averaged_as_the_weights_they_make(checkpoint: Maker, tmp_path: Path) -> None:
    """
    The mean of W + 4/2 B1 A1 and W + 8/4 B2 A2: not the product of mean matrices.
    """
    base, name = checkpoint("BASE"), "model.decoder.layers.0.fc1"
    random = torch.Generator().manual_seed(0)
    products, adapters = [], []
    for number, rank in enumerate((2, 4)):
        down, up = torch.randn(rank, 16, generator=random), torch.randn(32, rank, generator=random)
        folder = tmp_path / f"ADAPTER{number}"
        folder.mkdir()
        save_file(
            {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up},
            folder / "adapter_model.safetensors",
        )
        settings = {"peft_type": "LORA", "lora_alpha": 2 * rank, "r": rank, "base_model_name_or_path": str(base)}
        (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
        products.append(2 * up.double() @ down.double())
        adapters.append(folder)
    after, before = averaged(tmp_path / "OUT", *adapters), load_file(base / FILE)
    expected = (before[f"{name}.weight"].double() + (products[0] + products[1]) / 2).float()

    assert torch.equal(after[f"{name}.weight"], expected)
    assert all(torch.equal(after[key], before[key]) for key in before if key != f"{name}.weight")

    shutil.copytree(adapters[0], tmp_path / "DORA")
    settings = json.loads((tmp_path / "DORA" / "adapter_config.json").read_text(encoding="utf-8")) | {"use_dora": True}
    (tmp_path / "DORA" / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"DORA uses peft's use_dora; merge it with peft first"):
        averaged(tmp_path / "NONE", adapters[0], tmp_path / "DORA")


def test_real_weights_in_shards_average_to_themselves(shared: Path, tmp_path: Path) -> None:
    """
    whisper-tiny.en from three files: the mean of it and itself is it, tensor for tensor.
    """
    source = shared / "models" / "whisper-tiny.en"
    after = averaged(tmp_path / "OUT", source, source)
    before = Weights(source)

    assert after.keys() == before.layouts.keys() - {"proj_out.weight"}
    assert all(torch.equal(tensor, before.read(name)) for name, tensor in after.items())


shapes = strategies.lists(strategies.integers(0, 4), max_size=3).map(tuple)
kinds = strategies.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.bool])


@pytest.mark.unit
@settings(deadline=None, max_examples=50)
@given(strategies.dictionaries(strategies.text(min_size=1, max_size=9), strategies.tuples(shapes, kinds), max_size=5))
def test_files_written_as_they_come_read_back(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]
) -> None:
    """
    safetensors reads what the writer wrote, for any names, shapes and types.
    """
    made = {name: torch.randint(0, 2, shape).to(dtype) for name, (shape, dtype) in tensors.items() if name != "__metadata__"}
    path = tmp_path_factory.mktemp("written") / FILE
    write_safetensors(path, {name: Layout(tuple(t.shape), t.dtype) for name, t in made.items()}, made.__getitem__)
    read = load_file(path)

    assert read.keys() == made.keys()
    assert all(torch.equal(read[name], made[name]) and read[name].dtype == made[name].dtype for name in made)
