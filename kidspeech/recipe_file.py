"""
Recipes as text: found by their path or name, read as YAML, overrides laid over them. What they mean is kidspeech.config's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from kidspeech.errors import RecipeError


class _Loader(yaml.SafeLoader):
    """
    YAML with 1e-5 as a number, as everybody writes it and YAML 1.1 does not read it, and with no key twice, of which one
    would be lost unseen.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """
        Return the mapping of *node*.
        """
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise yaml.constructor.ConstructorError(problem="a key stands twice in one place", problem_mark=node.start_mark)
        return found


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def shipped_recipes() -> dict[str, str]:
    """
    Return the text of every recipe that ships with kidspeech, by name.
    """
    files = [entry for entry in resources.files("kidspeech.recipes").iterdir() if entry.name.endswith(".yaml")]
    return {
        entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8") for entry in sorted(files, key=lambda f: f.name)
    }


def find_recipe(name: str) -> str:
    """
    Return the text of a recipe, by path or by the name of a shipped one.

    Raises:
        RecipeError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    msg = f"no recipe {name}: there is no such file, and the shipped recipes are {', '.join(shipped)}"
    raise RecipeError(msg)


def parse_recipe(text: str, source: str, sections: Iterable[str]) -> dict[str, Any]:
    """
    Return the settings in *text*, unchecked, by section.

    Raises:
        RecipeError: it is not YAML, or holds no sections.
    """
    try:
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506  _Loader is a SafeLoader
    except yaml.YAMLError as error:
        msg = f"recipe {source} is not YAML: {error}"
        raise RecipeError(msg) from error
    if not isinstance(tree, dict):
        msg = f"recipe {source} must hold the sections {', '.join(sections)}"
        raise RecipeError(msg)
    return tree


def lay_over(tree: dict[str, Any], override: str) -> str | None:
    """
    Set "section.key=value" in *tree*, or deeper "data.corpora.name.key=value"; return what is wrong with it, or None.
    """
    path, equals, text = override.partition("=")
    *parents, key = path.split(".")
    if not (equals and parents and key):
        return f"{override}: overrides read section.key=value, like train.epochs=2"
    fields = tree
    for parent in parents:
        fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict):
            return f"{path}: {parent} holds no settings"
    try:
        fields[key] = yaml.load(text, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError:
        fields[key] = text
    return None
