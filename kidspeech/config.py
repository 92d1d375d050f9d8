"""
Recipes: every setting of kidspeech with its type, its default and its one sentence, defined here and nowhere else.

A recipe is a YAML file of the four sections below. What it leaves out takes the default; what is not a setting is an
error. `kidspeech recipe NAME` prints a recipe in full, with these sentences as comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, ValidationInfo, field_validator

from kidspeech.errors import RecipeError

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """
    One section of a recipe: strict types, no unknown keys, no change after loading.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, use_attribute_docstrings=True)


class Data(Section):
    """
    What `kidspeech prepare` keeps, and which children it sets aside for validation.
    """

    val_ratio: float = Field(default=0.1, gt=0, le=0.5)
    """Share of the utterances to validate on; whole children, so the share reached differs a little."""
    stratify_by: Literal["age_bucket", "session_id"] | None = "age_bucket"
    """Manifest field whose mix is kept alike on both sides of the split; null for none."""
    split_tolerance: Share = 0.05
    """How far the share reached, overall or of an age group, may lie from the one asked for before it is an error."""
    val_ids: str | None = None
    """File of utterance ids (one a line) to validate on, instead of drawing children."""
    drop_val_children: bool = True
    """With val_ids: drop the other utterances of those children, so that no child is on both sides."""
    seed: int = 0
    """Seed of the split."""
    min_seconds: float = Field(default=0.1, ge=0)
    """Shorter clips are skipped and listed."""
    max_seconds: PositiveFloat = 30.0
    """Longer clips are skipped and listed; Whisper hears 30 s at most, and cutting audio under its whole text misleads it."""
    max_skipped: Share = 0.02
    """Share of the utterances that may be unusable before the run stops."""
    verify: bool = True
    """Check each file's size and md5 against the manifest, where the manifest has them."""
    workers: PositiveInt | None = None
    """Processes that read audio; null for one a core."""

    @field_validator("max_seconds")
    @classmethod
    def _above_min(cls, value: float, info: ValidationInfo) -> float:
        lowest = info.data.get("min_seconds", 0.0)
        if value <= lowest:
            msg = f"must be above data.min_seconds ({lowest:g})"
            raise ValueError(msg)
        return value


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
    batch_seconds: PositiveFloat = 240.0
    """Seconds of (padded) audio one device takes at once; a larger step is accumulated, with the same result."""
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
    model: Model = Model()
    train: Train = Train()
    decode: Decode = Decode()


class _Loader(yaml.SafeLoader):
    """
    YAML with 1e-5 as a number, as everybody writes it and YAML 1.1 does not read it.
    """


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """
    Read a recipe and lay *overrides* over it.

    Args:
        name: path of a YAML file, or the name of a shipped recipe ("whisper-small").
        overrides: "section.key=value", the value as YAML.

    Raises:
        RecipeError: no such recipe; or every unknown key, wrong type and contradiction in it, with dotted paths.
    """
    source, text = _find(str(name))
    return _checked(_parse(text, source), overrides, source)


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """
    Return *recipe* with *overrides* ("section.key=value") laid over it.

    Raises:
        RecipeError: every unknown key, wrong type and contradiction.
    """
    return _checked(as_dict(recipe), overrides, "with these overrides")


def shipped_recipes() -> dict[str, str]:
    """
    Return the text of every recipe that ships with kidspeech, by name.
    """
    files = [entry for entry in resources.files("kidspeech.recipes").iterdir() if entry.name.endswith(".yaml")]
    return {
        entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8") for entry in sorted(files, key=lambda f: f.name)
    }


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
    for section, fields in recipe:
        lines += [f"{section}:"]
        for key, field in type(fields).model_fields.items():
            value = getattr(fields, key)
            shown = (
                str(value)
                if isinstance(value, Batch)
                else yaml.safe_dump(value, default_flow_style=True).split("\n...")[0].strip()
            )
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
    problems = [problem for override in overrides if (problem := _lay_over(tree, override))]
    recipe, more = validate(tree)
    if recipe is None or problems:
        raise RecipeError("\n  ".join([f"recipe {source} can't be used:", *problems, *more]))
    return recipe


def _find(name: str) -> tuple[str, str]:
    path = Path(name)
    if path.is_file():
        return name, path.read_text(encoding="utf-8")
    shipped = shipped_recipes()
    if name in shipped:
        return name, shipped[name]
    msg = f"no recipe {name}: there is no such file, and the shipped recipes are {', '.join(shipped)}"
    raise RecipeError(msg)


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506  _Loader is a SafeLoader
    except yaml.YAMLError as error:
        msg = f"recipe {source} is not YAML: {error}"
        raise RecipeError(msg) from error
    if not isinstance(tree, dict):
        msg = f"recipe {source} must hold the sections {', '.join(Recipe.model_fields)}"
        raise RecipeError(msg)
    return tree


def _lay_over(tree: dict[str, Any], override: str) -> str | None:
    path, equals, text = override.partition("=")
    section, dot, key = path.partition(".")
    if not (equals and dot and key):
        return f"{override}: overrides read section.key=value, like train.epochs=2"
    fields = tree.setdefault(section, {})
    if not isinstance(fields, dict):
        return f"{section}: must hold settings"
    try:
        fields[key] = yaml.load(text, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError:
        fields[key] = text
    return None


def _word(location: tuple[int | str, ...], message: str, kind: str) -> str:
    path = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        fields = Recipe.model_fields if len(location) == 1 else _fields_of(str(location[0]))
        return f"{path}: no such setting; there are {', '.join(fields)}"
    return f"{path}: {message.removeprefix('Value error, ').removeprefix('Input should be ')}"


def _fields_of(section: str) -> Iterable[str]:
    annotation = Recipe.model_fields[section].annotation
    return annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, Section) else ()
