"""
kidspeech submit: a checkpoint to submission.zip, or a run of one.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from kidspeech.cli import output
from kidspeech.cli.options import OverridesArg
from kidspeech.errors import SubmissionError


def submit(
    checkpoint: Annotated[Path | None, Argument(help="best/ of a run, or any Whisper folder on this machine.")] = None,
    overrides: OverridesArg = None,
    out: Annotated[Path, Option("--out", help="The zip to write.")] = Path("submission.zip"),
    minutes: Annotated[float, Option(help="Begin no batch later than this; the contest ends a run at 120.")] = 110.0,
    check: Annotated[Path | None, Option("--check", help="Instead of packing: run this zip as the container does.")] = None,
    data: Annotated[
        Path | None, Option(help="With --check: folder with utterance_metadata.jsonl, submission_format.jsonl and audio/.")
    ] = None,
    python: Annotated[Path, Option(help="With --check: the interpreter, best one that has the container's packages.")] = Path(
        sys.executable
    ),
) -> None:
    """
    Pack a checkpoint for the contest's container: main.py, the weights, and the modules it needs; or try such a zip.

    **Examples**

        kidspeech submit RUN/best --out submission.zip

        kidspeech submit --check submission.zip --data data-demo/word
    """
    if (checkpoint is None) == (check is None) or (check is None) != (data is None):
        msg = "give a checkpoint to pack, or --check submission.zip with --data DIR"
        raise SubmissionError(msg)
    if check and data:
        _check(check, data, python)
    elif checkpoint:
        from kidspeech.submission import pack

        packed = pack(checkpoint, out, overrides=overrides or (), minutes=minutes)
        output.note(f"{packed.size / 1e6:,.1f} MB, {len(packed.modules)} modules of kidspeech")
        output.done("submission", out, shlex.join(["kidspeech", "submit", "--check", str(out), "--data", "DIR"]))


def _check(archive: Path, data: Path, python: Path) -> None:
    from kidspeech.submission import check

    checked = check(archive, data, python=python)
    output.note(checked.log.rstrip())
    output.note(f"{checked.lines} lines in the order of the format, {checked.empty} of them empty, {checked.seconds:.0f} s")
