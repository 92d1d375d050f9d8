"""
Model families: one file each, and the dict that names them.
"""

from __future__ import annotations

from kidspeech.config import Model
from kidspeech.errors import RecipeError
from kidspeech.models.base import IGNORED, BaseASRModel, Batch
from kidspeech.models.whisper import WhisperModel

MODELS: dict[str, type[BaseASRModel]] = {"whisper": WhisperModel}

__all__ = ["IGNORED", "MODELS", "BaseASRModel", "Batch", "create_model"]


def create_model(config: Model) -> BaseASRModel:
    """
    Return the model of a recipe, without weights.

    Raises:
        RecipeError: no such family, or nothing to start from.
    """
    if config.family not in MODELS:
        msg = f"model.family: no model {config.family!r}; there are {', '.join(MODELS)}"
        raise RecipeError(msg)
    if config.pretrained is None and config.random is None:
        msg = "model.pretrained: give the folder or Hub id of a checkpoint to start from"
        raise RecipeError(msg)
    return MODELS[config.family](config)
