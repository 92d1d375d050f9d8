"""
The options that several commands share, each with its one help text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

RecipeArg = Annotated[
    str, Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one: see `kidspeech recipe`.")
]
OverridesArg = Annotated[
    list[str] | None, Argument(metavar="[section.key=value]...", help="Settings laid over the recipe, like train.epochs=2.")
]
AudioDirOpt = Annotated[
    list[Path] | None,
    Option("--audio-dir", help="A folder to look for audio in, by file name, with its sub-folders; repeat it for more."),
]
YesOpt = Annotated[bool, Option("--yes", "-y", help="Don't ask before it costs or deletes.")]
GpuOpt = Annotated[list[str] | None, Option("--gpu", help="GPU type to rent; repeat it for more, in order of preference.")]
JsonOpt = Annotated[bool, Option("--json", help="Print JSON for scripts on stdout.")]
CacheOpt = Annotated[
    Path | None,
    Option("--cache-dir", help="Feature cache; by default $KIDSPEECH_CACHE, or ~/.cache/kidspeech.", show_default=False),
]


def run_folder(run: str) -> Path:
    """
    Return where a run lies on this machine if nobody says otherwise.
    """
    return Path("runs") / run
