"""
The house: imports point one way, the help is light, and what stands in several places agrees.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A module imports only from rows above its own.
LAYERS: list[set[str]] = [
    {"errors", "progress", "distribution", "sharded", "ema", "stopping", "launcher"},
    {"recipe_file", "manifest", "weights"},
    {"data_config"},
    {"config"},
    {"features", "metrics", "split", "demo", "clips", "folders", "processes", "guards"},
    {"remote_folder", "hardware"},
    {"reading", "shards", "plots", "page", "batching", "sources"},
    {"workers", "report", "models", "clip_table", "speed", "read_ahead"},
    {"cache", "collate", "augment", "adapters", "arrow_folder", "suspicion"},
    {"examples", "noise", "loader", "checkpoint", "overview", "card", "transcribe"},
    {"prepared", "meter", "validation"},
    {"selection", "run_record", "overview_page"},
    {"dataset"},
    {"train", "predict", "averaging", "submission", "submission_main", "export", "hub"},
]
UPWARDS = {("train", "cli")}  # `python -m kidspeech.train` is the command line in a launched process; nobody else imports it


def modules() -> dict[str, list[Path]]:
    """
    Return the files of each module or sub-package of kidspeech.
    """
    found: dict[str, list[Path]] = {}
    for path in (ROOT / "kidspeech").rglob("*.py"):
        found.setdefault(path.relative_to(ROOT / "kidspeech").parts[0].removesuffix(".py"), []).append(path)
    return {name: paths for name, paths in found.items() if name != "__init__"}


def imports(path: Path) -> set[str]:
    """
    Return the modules of kidspeech that *path* imports, at any depth of nesting.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "kidspeech" else [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("kidspeech.")}
    return found - {"__version__", "FEATURES_VERSION"}


@pytest.mark.unit
def test_every_module_has_its_layer() -> None:
    """
    A new file must be given a place.
    """
    assert set(modules()) - {"runpod", "recipes"} == set().union(*LAYERS)


@pytest.mark.unit
@pytest.mark.parametrize("name", sorted(set().union(*LAYERS)))
def test_modules_import_only_from_the_layers_above(name: str) -> None:
    """
    No module imports one of its own layer or of a later one.
    """
    above: set[str] = set().union(*LAYERS[: next(row for row, layer in enumerate(LAYERS) if name in layer)])
    for path in modules()[name]:
        upwards = {imported for imported in imports(path) - above - {name} if (name, imported) not in UPWARDS}
        assert not upwards, f"{path} imports {upwards}"


@pytest.mark.unit
def test_nothing_of_the_library_prints_or_exits() -> None:
    """
    Only cli/ does.
    """
    for paths in modules().values():
        for path in paths:
            calls = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
            assert not {ast.unparse(call) for call in calls} & {"print", "sys.exit", "exit"}, path


@pytest.mark.integration
def test_the_help_imports_nothing_heavy() -> None:
    """
    kidspeech --help answers at once: no torch, no transformers, no datasets.
    """
    program = (
        "import sys; from kidspeech.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy', 'httpx', 'boto3'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stderr.strip() == "[]"
    assert "prepare" in done.stdout


@pytest.mark.unit
def test_the_readme_shows_the_tree_as_it_is() -> None:
    """
    Each module of the library stands in the README's tree with its phrase, and nothing else does.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```text\nkidspeech/\n(.*?)```", text, flags=re.DOTALL)
    assert tree is not None
    library = tree[1].split("\ncli/")[0]
    named = set(re.findall(r"^  (\w+)(?:\.py|/)", library, flags=re.MULTILINE))

    assert named == set(modules())
