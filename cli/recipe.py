"""
kidspeech recipe: what recipes there are, and what one says in full.
"""

from __future__ import annotations

from typing import Annotated

from typer import Argument

from kidspeech.cli import output
from kidspeech.cli.options import OverridesArg


def recipe(
    name: Annotated[str | None, Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")] = None,
    overrides: OverridesArg = None,
) -> None:
    """
    List the shipped recipes, or print one with every setting explained.

    **Examples**

        kidspeech recipe

        kidspeech recipe whisper-small train.epochs=5 > mine.yaml
    """
    from kidspeech.config import documented, load_recipe, shipped_recipes

    if name is not None:
        output.data(documented(load_recipe(name, overrides or [])))
        return
    output.table("", ["recipe", ""], [[key, text.splitlines()[0].lstrip("# ")] for key, text in shipped_recipes().items()])
