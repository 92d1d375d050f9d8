"""
The sections of a recipe that say what `kidspeech prepare` makes, and what every section is.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kidspeech.manifest import AgeBucket

Share = Annotated[float, Field(ge=0, le=1)]
Limits = Annotated[
    dict[AgeBucket | Literal["default"], Annotated[float, Field(ge=0)]],
    BeforeValidator(lambda value: {"default": value} if isinstance(value, int | float) else value),
]
Speed = Annotated[float, Field(ge=0.5, le=2)]


class Section(BaseModel):
    """
    One section of a recipe: strict types, no unknown keys, no change after loading.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, use_attribute_docstrings=True)


class Corpus(Section):
    """
    One of several corpora.
    """

    manifests: Annotated[list[str], Field(min_length=1)]
    """JSONL files, read as one."""
    audio_dirs: list[str] = []
    """Folders to look for its audio in, by file name; none for the folders of the manifests."""
    weight: PositiveFloat = 1.0
    """How often a clip of it is drawn in an epoch of training: 2 is twice, 0.5 every other epoch."""


class Data(Section):
    """
    What `kidspeech prepare` keeps, and which children it sets aside for validation.
    """

    corpora: dict[str, Corpus] = {}
    """Several corpora by name, each with manifests, audio_dirs and a weight; paths are seen from where the command runs."""
    shared_children: Literal["refuse", "merge", "separate"] = "refuse"
    """A child_id in two corpora: refuse it, merge (one child, on one side of the split), or separate (two children)."""
    val_ratio: float = Field(default=0.1, gt=0, le=0.5)
    """Share of the utterances to validate on; whole children, so the share reached differs a little."""
    stratify_by: Literal["age_bucket", "session_id", "corpus"] | None = "age_bucket"
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


class Choose(Section):
    """
    Which clips of the training side are trained on, and which copies are made of them; validation is never touched.
    """

    min_seconds: float = Field(default=0.0, ge=0)
    """Shorter clips are left out of training, and listed."""
    max_seconds: PositiveFloat | None = None
    """Longer clips are left out of training, and listed; null for no limit but data.max_seconds."""
    min_words_per_second: float = Field(default=0.0, ge=0)
    """Clips with fewer words a second are left out: much of them is silence, or not transcribed."""
    max_words_per_second: PositiveFloat | None = None
    """Clips with more words a second are left out: the text goes on after the audio was cut. Children stay under 6."""
    teacher: str | None = None
    """File of another model's predictions for the training clips, as kidspeech predict writes it."""
    max_wer: Limits | None = None
    """Leave clips out whose teacher has a higher WER: one limit, or {default: 0.5, 3-4: 1.0} by age group."""
    max_cer: Limits | None = None
    """The same for the character error rate, over texts normalised as for the WER."""
    join: Literal["and", "or"] = "or"
    """With both limits: leave out what is over the one "or" the other, or only what is over the one "and" the other."""
    speeds: list[Speed] = []
    """Copies of every training clip at these speeds, like [0.9, 1.1]: longer and lower, or shorter and higher."""

    @field_validator("max_seconds", "max_words_per_second")
    @classmethod
    def _above_min(cls, value: float | None, info: ValidationInfo) -> float | None:
        lowest = f"min_{str(info.field_name).removeprefix('max_')}"
        if value is not None and value <= info.data.get(lowest, 0.0):
            msg = f"must be above choose.{lowest} ({info.data[lowest]:g})"
            raise ValueError(msg)
        return value

    @field_validator("max_wer", "max_cer")
    @classmethod
    def _with_teacher(cls, value: Limits | None, info: ValidationInfo) -> Limits | None:
        if value is not None and info.data.get("teacher") is None:
            msg = "needs the predictions of choose.teacher"
            raise ValueError(msg)
        return value

    @field_validator("speeds")
    @classmethod
    def _other_speeds(cls, value: list[float]) -> list[float]:
        if 1 in value or len(set(value)) < len(value):
            msg = "must differ from 1 and from each other"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _teacher_has_limits(self) -> Choose:
        if self.teacher is not None and self.max_wer is None and self.max_cer is None:
            msg = "teacher does nothing without max_wer or max_cer"
            raise ValueError(msg)
        return self
