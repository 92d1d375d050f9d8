"""
`kidspeech inspect`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from kidspeech.cli import output
from kidspeech.cli.options import AudioDirOpt, JsonOpt
from kidspeech.errors import DatasetError

if TYPE_CHECKING:
    from kidspeech.manifest import AudioIndex
    from kidspeech.overview import Amount, Overview

COMMON = 12  # words in the terminal; the page and --json have more


def inspect(
    data: Annotated[str, Argument(metavar="DATA", help="A dataset folder or s3:// URL that `kidspeech prepare` made.")],
    report: Annotated[Path | None, Option(help="Write an HTML page with plots, suspicious utterances and players.")] = None,
    audio_dir: AudioDirOpt = None,
    json: JsonOpt = False,
) -> None:
    """
    Show what is in a prepared dataset: children and hours, lengths, sound, words, and utterances that look suspicious.

    **Examples**

        kidspeech inspect DATA

        kidspeech inspect DATA --report data.html --audio-dir audio_0 --audio-dir audio_1

        kidspeech inspect DATA --json | jq -r '.suspects[] | select(.reasons.clipped) | .utterance_id'

    The schema of --json: `python -m pydoc kidspeech.overview`.
    """
    from kidspeech.manifest import AudioIndex
    from kidspeech.overview import as_record, read_overview
    from kidspeech.remote_folder import local_folder

    if audio_dir and not report:
        msg = "--audio-dir is for the players of --report; give --report data.html too, or leave it out"
        raise DatasetError(msg)
    audio = AudioIndex(audio_dir) if audio_dir else None
    with output.progress() as progress:
        overview = read_overview(local_folder(data, progress=progress), progress)
    if json:
        output.as_json(as_record(overview))
    else:
        _print(overview)
    if report:
        _write(report, overview, data, audio)
    else:
        output.note(f"next: kidspeech inspect {data} --report data.html --audio-dir …")


def _print(overview: Overview) -> None:
    sides = list(overview.sides)
    rows = [_row(age, group.total, group.sides) for age, group in overview.ages.items()]
    head = ["", "utterances", "hours", "children", *(f"in {name}" for name in sides)]
    output.table("by age", head, [*rows, _row("all", overview.total, overview.sides)])
    if corpora := [_row(name, group.total, group.sides) for name, group in overview.corpora.items()]:
        output.data("")
        output.table("by corpus", head, corpora)
    output.data("")
    _spreads(overview)
    _words(overview)
    for reason, count in overview.skipped.items():
        output.data(f"skipped: {count:,} × {reason}")
    _suspicious(overview)
    for text in overview.notes:
        output.note(f"note: {text}")


def _row(name: str, total: Amount, sides: dict[str, Amount]) -> list[str]:
    held = [f"{amount.children:,}" for amount in sides.values()]
    return [name, f"{total.utterances:,}", f"{total.hours:,.2f}", f"{total.children:,}", *held]


def _spreads(overview: Overview) -> None:
    spreads = {
        "seconds": overview.seconds,
        "words a second": overview.words_per_second,
        "loudness, dBFS": overview.rms_dbfs,
        "peak, dBFS": overview.peak_dbfs,
        "minutes a child": overview.minutes,
    }
    rows = [
        [name, *(f"{figure:.2f}" for figure in (one.low, one.p5, one.median, one.p95, one.high))]
        for name, one in spreads.items()
    ]
    output.table("spread", ["", "lowest", "5 %", "median", "95 %", "highest"], rows)
    rates = ", ".join(f"{rate:,} Hz ({count:,})" for rate, count in overview.sampling_rates.items())
    channels = ", ".join(f"{number} ({count:,})" for number, count in overview.channels.items())
    output.data(f"\nsampling rates: {rates}; channels: {channels}; clips that touch full scale: {overview.at_full_scale:,}")


def _words(overview: Overview) -> None:
    words = overview.words
    common = ", ".join(f"{word} ({count:,})" for word, count in words.frequent[:COMMON])
    output.data(f"words: {words.total:,}, of them different {words.vocabulary:,}, said once {words.once:,}; {common}")
    if words.unheard is not None and words.heard_sentences is not None:
        output.data(
            f"outside training: {words.unheard:.1%} of the words never occur in it, "
            f"{words.heard_sentences:.1%} of the transcripts do"
        )


def _suspicious(overview: Overview) -> None:
    from kidspeech.suspicion import RULES

    rows = [[rule.title, f"{overview.suspected[rule.key]:,}"] for rule in RULES if overview.suspected[rule.key]]
    if rows:
        output.data("")
        output.table("suspicious", ["", "utterances"], rows)
    else:
        output.data("suspicious: none")


def _write(path: Path, overview: Overview, data: str, audio: AudioIndex | None) -> None:
    from kidspeech.overview_page import write_overview

    players = write_overview(path, overview, title=Path(data).resolve().name, audio=audio)
    if audio and not players:
        output.note("none of the clips to listen to has its audio in these folders, so the report has no players")
    output.done("report", path, f"open {path} in a browser")
