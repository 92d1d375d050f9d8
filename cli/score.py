"""
`kidspeech score`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from kidspeech.cli import output
from kidspeech.cli.options import AudioDirOpt, JsonOpt
from kidspeech.errors import ScoreError

if TYPE_CHECKING:
    from kidspeech.manifest import AudioIndex, TextField, Utterance
    from kidspeech.metrics import Difference, Group, Score

HARDEST = 5  # children, and confusions of each kind, in the terminal; the report and --json have them all
TITLES = {"age_bucket": "by age", "duration": "by length", "corpus": "by corpus"}
UNITS = {"wer": "words", "ipa_cer": "chars"}
NAMES = {"wer": "WER", "ipa_cer": "CER"}


def score(
    predictions: Annotated[Path, Argument(help="JSONL with utterance_id and orthographic_text, or phonetic_text.")],
    manifests: Annotated[list[Path], Argument(metavar="M.jsonl...", help="The references; each file counts as a corpus.")],
    against: Annotated[
        Path | None, Option(help="Other predictions of the same clips: also print the paired difference and how sure it is.")
    ] = None,
    report: Annotated[Path | None, Option(help="Write an HTML page with plots, alignments and players.")] = None,
    audio_dir: AudioDirOpt = None,
    json: JsonOpt = False,
) -> None:
    """
    Score predictions exactly as the contest does: WER for words, IPA CER for phonetic_text; with 95% intervals over children.

    **Examples**

        kidspeech score predictions.jsonl M.jsonl

        kidspeech score predictions.jsonl drivendata.jsonl talkbank.jsonl --json | jq .total.wer

        kidspeech score tuned.jsonl M.jsonl --against zero-shot.jsonl

        kidspeech score predictions.jsonl M.jsonl --report report.html --audio-dir audio_0 --audio-dir audio_1

    The schema of --json: `python -m pydoc kidspeech.metrics.record`.
    """
    from kidspeech.manifest import AudioIndex
    from kidspeech.metrics import compare, text_field
    from kidspeech.metrics.record import as_record

    if audio_dir and not report:
        msg = "--audio-dir is for the players of --report; give --report report.html too, or leave it out"
        raise ScoreError(msg)
    audio = AudioIndex(audio_dir) if audio_dir else None
    field = text_field(predictions)
    references, corpora = _read(manifests, field)
    ours = _score(predictions, references, corpora, field)
    differences = compare(ours, _score(against, references, corpora, field)) if against else []
    if json:
        output.as_json(as_record(ours, differences))
    else:
        _print(ours, differences, against)
    if report:
        _write(report, ours, differences, (predictions.name, against.name if against else ""), audio)
    else:
        files = " ".join(map(str, [predictions, *manifests]))
        output.note(f"next: kidspeech score {files} --report report.html --audio-dir …")


def _read(manifests: Sequence[Path], field: TextField) -> tuple[list[Utterance], dict[str, str]]:
    from kidspeech.manifest import read_manifest

    stems = {path.stem for path in manifests}
    references: list[Utterance] = []
    corpora: dict[str, str] = {}
    for path in manifests:
        found = read_manifest(path, required=("utterance_id", field))
        references += found
        name = path.stem if len(stems) == len(manifests) else str(path)
        corpora |= {utterance.utterance_id: utterance.corpus or name for utterance in found}
    told = len(manifests) > 1 or any(utterance.corpus for utterance in references)
    return references, corpora if told else {}


def _score(path: Path, references: Sequence[Utterance], corpora: Mapping[str, str], field: TextField) -> Score:
    from kidspeech.metrics import read_predictions, score, text_field

    if text_field(path) != field:
        msg = f"{path} holds {text_field(path)}, while the other predictions hold {field}; compare two of the same kind"
        raise ScoreError(msg)
    texts = read_predictions(path, field)
    try:
        with output.progress() as progress:
            return score(texts, references, text_field=field, corpora=corpora, progress=progress)
    except ScoreError as error:
        msg = f"{path}: {error}"
        raise ScoreError(msg) from error


def _print(score: Score, differences: Sequence[Difference], against: Path | None) -> None:
    from kidspeech.metrics.bootstrap import FEW

    name = NAMES[score.metric]
    output.data(f"{score.metric.upper().replace('_', ' ')} {score.figure!r}\n")
    for key, title in TITLES.items():
        if key in score.by:
            rows = [*score.by[key], *([score.total] if key == "age_bucket" else [])]
            _table(title, name, rows, score.metric)
    if children := sorted(score.by.get("child_id", []), key=lambda group: -(group.rate or 0)):
        hardest = [[one.name, _rate(one.rate), f"{one.clips:,}", f"{one.tally.units:,}"] for one in children[:HARDEST]]
        output.table(f"hardest of {len(children)} children", ["", name, "clips", UNITS[score.metric]], hardest)
        output.data("")
    _confusions(score)
    silence = score.silence
    if silence.clips:
        output.data(f"{silence.broken} of {silence.clips} silent clips got words: {silence.insertions} insertions\n")
    if differences:
        _differences(differences, name, against)
    shown = [group for key in TITLES for group in score.by.get(key, [])]
    if any(group.interval and (group.children or 0) < FEW for group in shown):
        output.note(f"intervals over fewer than {FEW} children are too narrow; read them as a rough guide")


def _table(title: str, name: str, groups: Sequence[Group], metric: str) -> None:
    head = ["", name, "95% interval", "clips", "exact", "children", UNITS[metric], "sub", "del", "ins"]
    output.table(title, head, [_row(group) for group in groups])
    output.data("")


def _row(group: Group) -> list[str]:
    tally = group.tally
    if not group.clips:
        return [group.name, "–", "–", "0", *["–"] * 6]
    counts = [tally.units, tally.substitutions, tally.deletions, tally.insertions]
    children = "?" if group.children is None else f"{group.children:,}"
    exact = f"{group.exact / group.clips:.0%}"
    return [
        group.name,
        _rate(group.rate),
        _span(group.interval),
        f"{group.clips:,}",
        exact,
        children,
        *(f"{n:,}" for n in counts),
    ]


def _confusions(score: Score) -> None:
    words = {"substitute": "taken for another", "delete": "left out", "insert": "made up"}
    for kind, title in words.items():
        found = [one for one in score.confusions if one.kind == kind][:HARDEST]
        if found:
            shown = (f"{' → '.join(filter(None, (one.reference, one.prediction)))} ({one.count})" for one in found)
            output.data(f"{title}: {', '.join(shown)}")
    output.data("")


def _differences(differences: Sequence[Difference], name: str, against: Path | None) -> None:
    rows = [
        [
            each.name,
            _rate(each.other),
            _rate(each.difference, sign="+"),
            _span(each.interval, sign="+"),
            "–" if each.probability is None else f"{each.probability:.1%}",
        ]
        for each in differences
    ]
    output.table(f"against {against}", ["", f"its {name}", "difference", "95% interval", "ours is better"], rows)


def _rate(rate: float | None, sign: str = "") -> str:
    return "–" if rate is None else f"{rate:{sign}.4f}"


def _span(interval: tuple[float, float] | None, sign: str = "") -> str:
    return "–" if interval is None else f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}"


def _write(
    path: Path, score: Score, differences: Sequence[Difference], titles: tuple[str, str], audio: AudioIndex | None
) -> None:
    from kidspeech.report import write_report

    players = write_report(path, score, title=titles[0], differences=differences, against=titles[1], audio=audio)
    if audio and not players:
        output.note("none of the worst clips has its audio in these folders, so the report has no players")
    output.done("report", path, f"open {path} in a browser")
