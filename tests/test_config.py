"""
Recipes: what people write is read as they mean it, and every mistake is named at once.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, strategies

from kidspeech.config import Batch, Recipe, as_dict, documented, load_recipe, override, shipped_recipes, validate
from kidspeech.errors import RecipeError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_and_starts_from_something(name: str) -> None:
    """
    A shipped recipe is found by its name, valid, and says what it is in its first line.
    """
    recipe = load_recipe(name)

    assert (recipe.model.pretrained is None) != (recipe.model.random is None)
    assert shipped_recipes()[name].startswith("# ")


def test_issue_recipes_are_shipped() -> None:
    """
    The recipes that the README names are there, small with the usual recipe's figures.
    """
    assert {"whisper-tiny.en", "whisper-small", "whisper-medium", "whisper-large-v3-turbo", "demo"} <= set(shipped_recipes())
    train = load_recipe("whisper-small").train
    assert (train.learning_rate, train.warmup_steps, train.effective_batch) == (1e-5, 500, Batch(amount=36, unit="clips"))
    assert not load_recipe("whisper-small").model.gradient_checkpointing
    assert load_recipe("whisper-large-v3-turbo").model.lora_rank == 32
    assert all(load_recipe(name).model.lora_rank is None for name in ("whisper-medium", "whisper-large-v3-turbo-full"))


def test_all_mistakes_are_reported_together_with_dotted_paths() -> None:
    """
    A typo, a wrong type, a number out of range and a contradiction come in one message.
    """
    wrong = [
        "train.learning_rat=1",
        "train.epochs=many",
        "data.val_ratio=2",
        "model.random={d_model: 8}",
        "data.min_seconds=40",
        "train.effective_batch=36 apples",
        "modle.family=x",
        "nonsense",
    ]

    with pytest.raises(RecipeError) as caught:
        load_recipe("whisper-small", wrong)

    message = str(caught.value)
    for path in (
        "train.learning_rat: no such setting",
        "train.epochs",
        "data.val_ratio",
        "model.random: contradicts model.pretrained",
        "data.max_seconds: must be above data.min_seconds",
        "train.effective_batch",
        "modle: no such setting; there are data, choose, model, train, augment, decode",
        "nonsense: overrides read section.key=value",
    ):
        assert path in message


def test_unknown_recipe_lists_the_shipped_ones() -> None:
    """
    Whoever misspells a recipe's name reads which there are.
    """
    with pytest.raises(RecipeError, match=r"no recipe whisper-smal: .* whisper-small"):
        load_recipe("whisper-smal")


@pytest.mark.parametrize("text", ["- a list", "data: [1, 2", "just words"])
def test_a_file_that_is_no_recipe_is_refused_by_name(text: str, tmp_path: Path) -> None:
    """
    Broken YAML, a list and prose are refused with the file's name.
    """
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(RecipeError, match=r"mine\.yaml"):
        load_recipe(path)


def test_corpora_are_checked_as_deep_as_they_go(tmp_path: Path) -> None:
    """
    A typo in a corpus is told like any other, an override reaches into one, and a name that stands twice is refused.
    """
    path = tmp_path / "mine.yaml"
    path.write_text("data: {corpora: {mine: {manifests: [a.jsonl]}}}", encoding="utf-8")

    assert load_recipe(path, ["data.corpora.mine.weight=0.5"]).data.corpora["mine"].weight == 0.5
    assert load_recipe(path, ["data.corpora.mine.weight=0.5"]) == override(load_recipe(path), ["data.corpora.mine.weight=0.5"])
    with pytest.raises(RecipeError, match=r"mine.manifest: no such setting; there are manifests, audio_dirs, weight"):
        load_recipe(path, ["data.corpora.mine.manifest=x"])
    path.write_text("data: {corpora: {mine: {manifests: [a.jsonl]}, mine: {manifests: [b.jsonl]}}}", encoding="utf-8")
    with pytest.raises(RecipeError, match="a key stands twice"):
        load_recipe(path)


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("3.0E-4", 3e-4), ("0.001", 1e-3), ("1", 1.0)])
def test_numbers_are_read_as_people_write_them(text: str, value: float) -> None:
    """
    YAML 1.1 takes 1e-5 for a word; a learning rate must not depend on that.
    """
    assert load_recipe("whisper-small", [f"train.learning_rate={text}"]).train.learning_rate == value


def test_a_wrong_type_is_not_made_to_fit() -> None:
    """
    Strict: yes is no number of epochs, 2.5 no number of beams, "8" no number of workers.
    """
    for wrong in ("train.epochs=yes", "decode.num_beams=2.5", 'data.workers="8"'):
        with pytest.raises(RecipeError):
            load_recipe("whisper-small", [wrong])


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_documented_form_reads_back_as_the_same_recipe(name: str, tmp_path: Path) -> None:
    """
    What `kidspeech recipe NAME > mine.yaml` writes is that recipe, with a sentence over every setting.
    """
    recipe = load_recipe(name)
    text = documented(recipe)
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")

    assert load_recipe(path) == recipe
    settings = sum(len(section) for section in as_dict(recipe).values())
    assert text.count("  # ") == settings


def test_every_setting_is_read_somewhere() -> None:
    """
    A setting that no line of the library reads would be a lie about the run.
    """
    source = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].glob("kidspeech/**/*.py"))
    for section, field in Recipe.model_fields.items():
        for key in type(field.get_default()).model_fields:
            assert f".{key}" in source.replace(f"{section}.{key}:", ""), f"{section}.{key}"


@given(strategies.floats(1, 1e4), strategies.sampled_from(["clips", "seconds"]))
def test_an_effective_batch_reads_back(amount: float, unit: str) -> None:
    """
    "36 clips" and "120 seconds" survive being written out.
    """
    written = f"{float(f'{amount:g}'):g}"
    if "e" in written:
        return
    recipe = override(Recipe(), [f"train.effective_batch={written} {unit}"])

    assert str(recipe.train.effective_batch) == f"{written} {unit}"
    assert validate(yaml.safe_load(yaml.safe_dump(as_dict(recipe))))[0] == recipe
