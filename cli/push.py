"""
kidspeech push: a checkpoint to the Hugging Face Hub, with its card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from kidspeech.cli import output
from kidspeech.errors import InputError


def push(
    checkpoint: Annotated[Path, Argument(help="best/ of a run.")],
    name: Annotated[str, Argument(metavar="USER/NAME", help="Where on the Hub; made, private, where it is not there.")],
    scores: Annotated[Path | None, Option(help="What `kidspeech score --json` wrote, for a table with intervals.")] = None,
    statement: Annotated[
        Path | None, Option(help="Text on the data for the card: whose voices, which terms, whose consent.")
    ] = None,
    public: Annotated[bool, Option("--public", help="Make a new repository public.")] = False,
) -> None:
    """
    Upload a checkpoint with a card: WER by age group, the data statement, how to use it.

    **Examples**

        kidspeech push RUN/best me/whisper-small-kids

        kidspeech push RUN/best me/whisper-small-kids --scores scores.json --statement data.md --public
    """
    from kidspeech.hub import push as upload

    try:
        said = statement.read_text(encoding="utf-8") if statement else None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"can't read {statement}: {error}"
        raise InputError(msg) from error
    output.done("pushed", upload(checkpoint, name, scores=scores, statement=said, public=public))
