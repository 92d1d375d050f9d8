"""
The sections of a recipe that say what `kidspeech prepare` makes, and what every section is.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

Share = Annotated[float, Field(ge=0, le=1)]


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
