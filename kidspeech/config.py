"""
Recipes: every setting of kidspeech with its type, its default and its one sentence, defined here and nowhere else.

A recipe is a YAML file of the sections of `Recipe`. What it leaves out takes the default; what is not a setting is an
error. `kidspeech recipe NAME` prints a recipe in full, with these sentences as comments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, ValidationInfo, field_validator

from kidspeech.data_config import Choose, Corpus, Data, Section, Share
from kidspeech.errors import RecipeError
from kidspeech.recipe_file import find_recipe, lay_over, parse_recipe, shipped_recipes

__all__ = [
    "Batch",
    "Choose",
    "Corpus",
    "Data",
    "Decode",
    "Model",
    "Recipe",
    "Section",
    "Train",
    "as_dict",
    "documented",
    "load_recipe",
    "override",
    "shipped_recipes",
    "validate",
]


class Model(Section):
    """
    What is trained.
    """

    family: str = "whisper"
    """Model family: a key of kidspeech.models.MODELS."""
    pretrained: str | None = None
    """Folder or Hub id of the weights to start from."""
    random: dict[str, int] | None = None
    """Instead of pretrained: sizes of a randomly initialised network (keys of transformers' WhisperConfig)."""
    language: str | None = None
    """Language of a multilingual checkpoint ("en"); null for English-only ones."""
    context: Literal["trimmed", "padded"] = "trimmed"
    """Encoder context: "trimmed" to the longest clip of a batch, or always "padded" to 30 s as in the usual recipe."""
    freeze_encoder: bool = False
    """Train the decoder only."""
    lora_rank: PositiveInt | None = None
    """Rank of LoRA adapters beside all projections of attention and feed-forward, which train instead of the weights."""
    lora_alpha: PositiveFloat = 64.0
    """Factor of LoRA's product, which is scaled by lora_alpha over lora_rank; twice the rank is common."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for a third more time."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout after embeddings, attention and feed-forward blocks."""

    @field_validator("random")
    @classmethod
    def _one_origin(cls, value: dict[str, int] | None, info: ValidationInfo) -> dict[str, int] | None:
        if value is not None and info.data.get("pretrained") is not None:
            msg = "contradicts model.pretrained; give one of the two"
            raise ValueError(msg)
        return value

    @field_validator("lora_rank")
    @classmethod
    def _on_weights(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("random") is not None:
            msg = "adapts the weights of model.pretrained; random ones are to be trained whole"
            raise ValueError(msg)
        return value


class Batch(Section):
    """
    A size: so many clips, or so many seconds of audio.
    """

    amount: PositiveFloat
    unit: Literal["clips", "seconds"]

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


class Train(Section):
    """
    How it is trained.
    """

    epochs: PositiveFloat = 3.0
    """Passes over the training clips."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever epochs says; the schedule ends there too."""
    effective_batch: Batch = Batch(amount=36, unit="clips")
    """What one optimizer step sees over all devices: "36 clips" or "120 seconds"."""
    batch_seconds: PositiveFloat | Literal["auto"] = "auto"
    """Seconds of (padded) audio a device takes at once, the rest of a step after it; auto tries what the card holds, once."""
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate, reached after the warm-up."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = Field(default=500, ge=0)
    """Optimizer steps over which the learning rate rises; at most a tenth of the run is used."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay, on matrices only."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    padded_finish: Share = 0.2
    """With the trimmed context: share of the last steps that see clips padded to 30 s, which costs time and wins accuracy."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic: auto is bf16 on cards that have it, else fp16, and fp32 on a CPU."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the network's layers: a minute or two once, then faster steps; auto does so on a GPU for runs of 5,000 steps."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay a step of an exponential moving average of the weights, which is what is validated and kept; 0 for none."""
    seed: int = 0
    """Seed of the order of the clips, dropout and new weights."""
    eval_every: PositiveInt | None = None
    """Optimizer steps between validations (WER by real generation); null for once an epoch."""
    patience: PositiveInt | None = None
    """Stop after this many validations without a better WER; null never does."""
    save_every: PositiveInt = 500
    """Optimizer steps between checkpoints; each validation writes one too."""
    save_total_limit: PositiveInt = 2
    """Checkpoints kept for resuming; best/ is apart from them."""
    log_every: PositiveInt = 10
    """Optimizer steps between lines of the log."""
    max_bad_steps: int = Field(default=5, ge=0)
    """Steps in a row whose loss or gradient is not finite (they change no weight) before the run stops."""
    loader_workers: int = Field(default=2, ge=0)
    """Processes that read the dataset ahead of the device; not used on a CPU, where they only take its cores."""

    @field_validator("effective_batch", mode="before")
    @classmethod
    def _parse_batch(cls, value: object) -> object:
        match = re.fullmatch(r"\s*([\d.]+)\s*(clips|seconds)\s*", value) if isinstance(value, str) else None
        if match is None:
            if isinstance(value, Batch):
                return value
            msg = 'must read like "36 clips" or "120 seconds"'
            raise ValueError(msg)
        return Batch(amount=float(match[1]), unit="clips" if match[2] == "clips" else "seconds")


class Augment(Section):
    """
    What training hears otherwise than it was recorded; nothing of it unless it is asked for.
    """

    time_masks: int = Field(default=0, ge=0)
    """SpecAugment: stretches of each clip that are masked, over all bands."""
    time_mask_frames: PositiveInt = 40
    """The longest of them, in frames of 10 ms."""
    time_mask_share: Share = 0.1
    """And no longer than this share of its clip, so that short clips keep their words."""
    mel_masks: int = Field(default=0, ge=0)
    """SpecAugment: ranges of mel bands that are masked, over the whole clip."""
    mel_mask_bands: PositiveInt = 15
    """The widest of them, in bands (there are 80, and 128 in large-v3)."""
    gain_db: float = Field(default=0.0, ge=0)
    """Clips get up to this much louder or softer, in dB."""
    warp: float = Field(default=0.0, ge=0, le=0.5)
    """Vocal-tract-length perturbation: frequencies are scaled by a factor from 1 - warp to 1 + warp."""
    noise: str | None = None
    """Folder of recordings to mix in as noise; null mixes none."""
    noise_share: Share = 0.5
    """Share of the clips that get noise."""
    noise_min_db: float = 5.0
    """The lowest signal-to-noise ratio drawn, in dB."""
    noise_max_db: float = 25.0
    """The highest signal-to-noise ratio drawn, in dB."""

    @field_validator("noise_max_db")
    @classmethod
    def _above_lowest(cls, value: float, info: ValidationInfo) -> float:
        lowest = info.data.get("noise_min_db", value)
        if value < lowest:
            msg = f"must not be under augment.noise_min_db ({lowest:g})"
            raise ValueError(msg)
        return value


class Decode(Section):
    """
    How text is made from a checkpoint, in validation and in `kidspeech predict`.
    """

    batch_seconds: PositiveFloat | None = None
    """Seconds of (padded) audio decoded at once; null for 240, and for 1,200 in `kidspeech predict` on a GPU."""
    num_beams: PositiveInt = 1
    """Beams; 1 is greedy."""
    context: Literal["auto", "trimmed", "padded"] = "auto"
    """Encoder context: auto follows the checkpoint's training; "trimmed" on one not trained for it can break it."""
    max_tokens_per_second: PositiveFloat | None = 8.0
    """Cap on new tokens by a clip's length, against loops; children speak under 5 tokens a second. null for none."""
    max_repeats: PositiveInt | None = 5
    """A phrase that comes more often than this in a row is a loop and said once; null leaves loops as they are."""
    silence: float | None = -3.5
    """Clips whose loudest mel band stays under ten to this power (noise 50 dB below full scale) get no words; null: none."""

    def seconds_at_once(self, *, roomy: bool = False) -> float:
        """
        Return batch_seconds, or what is taken where it is null; *roomy* is a GPU that does nothing else.
        """
        return self.batch_seconds or (1200.0 if roomy else 240.0)


class Recipe(Section):
    """
    A whole recipe.
    """

    data: Data = Data()
    choose: Choose = Choose()
    model: Model = Model()
    train: Train = Train()
    augment: Augment = Augment()
    decode: Decode = Decode()


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """
    Read a recipe and lay *overrides* over it.

    Args:
        name: path of a YAML file, or the name of a shipped recipe ("whisper-small").
        overrides: "section.key=value", the value as YAML.

    Raises:
        RecipeError: no such recipe; or every unknown key, wrong type and contradiction in it, with dotted paths.
    """
    source = str(name)
    return _checked(parse_recipe(find_recipe(source), source, Recipe.model_fields), overrides, source)


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """
    Return *recipe* with *overrides* ("section.key=value") laid over it.

    Raises:
        RecipeError: every unknown key, wrong type and contradiction.
    """
    return _checked(as_dict(recipe), overrides, "with these overrides")


def validate(tree: Mapping[str, Any]) -> tuple[Recipe | None, list[str]]:
    """
    Return the recipe that *tree* holds, or None and its problems, one sentence each.
    """
    try:
        return Recipe.model_validate(tree), []
    except ValidationError as error:
        return None, [_word(detail["loc"], detail["msg"], detail["type"]) for detail in error.errors()]


def documented(recipe: Recipe) -> str:
    """
    Return *recipe* as YAML with every setting, its sentence above it.
    """
    lines: list[str] = []
    for section, settings in as_dict(recipe).items():
        lines += [f"{section}:"]
        for key, field in type(getattr(recipe, section)).model_fields.items():
            shown = yaml.safe_dump(settings[key], default_flow_style=True, width=math.inf).split("\n...")[0].strip()
            lines += [f"  # {field.description}", f"  {key}: {shown}"]
        lines += [""]
    return "\n".join(lines)


def as_dict(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """
    Return *recipe* as plain data that load_recipe and validate read back.
    """
    tree: dict[str, dict[str, Any]] = recipe.model_dump()
    tree["train"]["effective_batch"] = str(recipe.train.effective_batch)
    return tree


def _checked(tree: dict[str, Any], overrides: Iterable[str], source: str) -> Recipe:
    problems = [problem for override in overrides if (problem := lay_over(tree, override))]
    recipe, more = validate(tree)
    if recipe is None or problems:
        raise RecipeError("\n  ".join([f"recipe {source} can't be used:", *problems, *more]))
    return recipe


def _word(location: tuple[int | str, ...], message: str, kind: str) -> str:
    path = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        fields = _fields_beside(location)
        return f"{path}: no such setting; there are {', '.join(fields)}"
    return f"{path}: {message.removeprefix('Value error, ').removeprefix('Input should be ')}"


def _fields_beside(location: tuple[int | str, ...]) -> Iterable[str]:
    if len(location) == 1:
        return Recipe.model_fields
    if len(location) > 2:  # nothing else lies that deep
        return Corpus.model_fields
    annotation = Recipe.model_fields[str(location[0])].annotation
    return annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, Section) else ()
