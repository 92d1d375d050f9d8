"""
The app: its commands in the order people need them, and the one place where errors become words and exit codes.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from kidspeech import __version__
from kidspeech.cli import average, demo, export, inspect, output, predict, prepare, push, recipe, runpod, score, submit, train
from kidspeech.errors import InputError, KidspeechError

app = typer.Typer(
    name="kidspeech",
    help="Fine-tune speech recognition on children's voices, and measure it on children the model never heard.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        output.data(__version__)
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """
    Take what stands before the command.
    """


app.command()(prepare.prepare)
app.command()(inspect.inspect)
app.command()(train.train)
app.command()(average.average)
app.command()(predict.predict)
app.command()(score.score)
app.command()(submit.submit)
app.command()(export.export)
app.command()(push.push)
app.command()(recipe.recipe)
app.command()(demo.demo)
app.add_typer(runpod.app)


# Their bars and advice drown what kidspeech says; whoever wants them sets these.
QUIET = {
    "ACCELERATE_LOG_LEVEL": "ERROR",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line and leave the process: 0 done, 1 failed, 2 the user's input can't be used, 130 interrupted.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        app(arguments)
    except KidspeechError as error:
        if os.environ.get("KIDSPEECH_DEBUG"):
            raise
        output.note(f"kidspeech: {error}")
        sys.exit(2 if isinstance(error, InputError) else 1)


if __name__ == "__main__":
    main()
