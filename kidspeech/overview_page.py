"""
The page on a prepared dataset, in the frame of kidspeech.page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from pathlib import Path

from kidspeech import __version__, page, plots
from kidspeech.distribution import TAIL, Distribution
from kidspeech.manifest import AudioIndex, Utterance
from kidspeech.overview import Amount, Group, Overview, Shown
from kidspeech.suspicion import RULES, Rule

LISTED = 150  # suspicious utterances in the table, each rule in its turn
PLAYERS = 30  # of them with audio, the first ones
COMMON = 36  # words
HEADINGS = ("reason and transcript", "seconds", "words", "dBFS", "age", "child")


@dataclass(frozen=True)
class Pace:
    """
    Words per second of an age group, as plots.span draws it.
    """

    name: str
    rate: float
    interval: tuple[float, float]


def write_overview(path: Path, overview: Overview, *, title: str, audio: AudioIndex | None = None) -> int:
    """
    Write the page on *overview*, whole or not at all, and return how many players it has.

    Args:
        path: the HTML file to write.
        overview: from read_overview().
        title: the dataset's name.
        audio: where to look for the clips that get a player.

    Raises:
        StorageError: the disk is full or can't be written.
    """
    chosen = [*listed(overview.suspects)[:PLAYERS], *overview.samples]
    utterances = {one.utterance_id: Utterance(one.utterance_id, one.audio_path) for one in chosen}
    players = page.embed(list(utterances.values()), audio) if audio else {}
    page.write_page(path, build_overview(overview, title=title, players=players))
    return len(players)


def build_overview(overview: Overview, *, title: str, players: Mapping[str, str] | None = None) -> str:
    """
    Return the page as HTML.
    """
    sections = [_ages(overview), _lengths(overview), _sound(overview), _words(overview), _skipped(overview)]
    return page.fill(
        title=f"{_hours(overview.total.hours)} of children’s speech: {title}",
        header=_header(overview, title),
        main=[*sections, _suspicious(overview, players or {}), _samples(overview, players or {})],
        footer=_footer(),
    )


def listed(suspects: Sequence[Shown]) -> list[Shown]:
    """
    Return what the table holds: the first of each rule, then the second of each, and so on, LISTED at most.
    """
    queues = [[one for one in suspects if rule.key in one.reasons] for rule in RULES]
    turns = (one for turn in zip_longest(*queues) for one in turn if one is not None)
    return list({one.utterance_id: one for one in turns}.values())[:LISTED]


def _header(overview: Overview, title: str) -> str:
    total, words = overview.total, overview.words
    facts = {
        "utterances": f"{total.utterances:,}",
        "median length": f"{overview.seconds.median:.1f} s",
        "words": f"{words.total:,}",
        "different words": f"{words.vocabulary:,}",
        "skipped": f"{sum(overview.skipped.values()):,}",
        "suspicious": f"{len(overview.suspects):,}",
    }
    people = "child" if total.children == 1 else "children"
    notes = "\n".join(f"<p>{escape(note)}</p>" for note in overview.notes)
    return (
        f'<h1>Children’s speech</h1>\n<p class="soft file">{escape(title)}</p>\n'
        f'<p class="headline"><strong>{_hours(total.hours)}</strong> <span>by {total.children:,} {people}</span></p>\n'
        f"{notes}{page.facts(facts)}"
    )


def _hours(hours: float) -> str:
    return f"{hours:,.{0 if hours >= 100 else 1 if hours >= 10 else 2}f} hours"


def _ages(overview: Overview) -> str:
    sides = [f"in {escape(name)}" for name in list(overview.sides)[1:]]
    head = page.head(["", "", "hours", "utterances", "children", *sides], {1: "plot", 3: "more"})
    top = max(group.total.hours for group in overview.ages.values())
    lines = [_amounts(age, group.total, group.sides, top) for age, group in overview.ages.items()]
    lines += [_amounts("all", overview.total, overview.sides)] if len(lines) > 1 else []
    lines += [_amounts(name, group.total, group.sides) for name, group in overview.corpora.items()]
    rows = "\n".join(lines)
    minutes = _figure("Children by their minutes of speech", overview.minutes)
    return (
        f'<section>\n<h2>Children and hours</h2>\n<p class="soft legend">{_legend(list(overview.sides), lines=False)}</p>\n'
        f'<table class="groups ages">\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n'
        f"{_pair(minutes, _pace(overview.ages, overview.words_per_second.median))}\n</section>"
    )


def _legend(names: Sequence[str], *, lines: bool = True) -> str:
    keys = zip(names, plots.SERIES, strict=False)
    return "".join(
        f'<span><i class="key {kind}{" line" if lines and kind != "first" else ""}"></i>{escape(name)}</span>'
        for name, kind in keys
    )


def _amounts(name: str, total: Amount, sides: Mapping[str, Amount], top: float | None = None) -> str:
    parts = [
        (f"{side}: {amount.hours:.2f} hours, {amount.children:,} children", amount.hours) for side, amount in sides.items()
    ]
    plot = plots.stack(parts, top) if top is not None else ""  # the whole would dwarf its parts
    held = "".join(f"<td>{amount.children:,}</td>" for amount in list(sides.values())[1:])
    return (
        f'<tr><td>{escape(name)}</td><td class="plot">{plot}</td><td>{total.hours:,.2f}</td>'
        f'<td class="more">{total.utterances:,}</td><td>{total.children:,}</td>{held}</tr>'
    )


def _pace(ages: Mapping[str, Group], overall: float) -> str:
    paces = [Pace(age, group.pace.median, (group.pace.p5, group.pace.p95)) for age, group in ages.items()]
    axis = plots.axis_of(paces)
    rows = "\n".join(
        f'<tr><td>{escape(pace.name)}</td><td class="plot">{plots.span(pace, axis, overall)}</td><td>{pace.rate:.2f}</td></tr>'
        for pace in paces
    )
    foot = f'<tr><td></td><td class="plot">{plots.scale(axis)}</td><td></td></tr>'
    return (
        "<figure><figcaption>Words a second by age: median, and from the 5th to the 95th of 100 clips</figcaption>"
        f'<table class="pace"><tbody>{rows}</tbody><tfoot>{foot}</tfoot></table></figure>'
    )


def _figure(what: str, spread: Distribution, unit: str = "") -> str:
    median = f"median {spread.median:.3g}{unit}".replace("-", "−")
    beyond = " The last bar holds all beyond." * (spread.high > spread.edges[-1])
    beyond += " The first bar holds all below." * (spread.low < spread.edges[0])
    plot = plots.histogram(spread.edges, spread.counts, f"{what}: {median}", (spread.median, median))
    return f"<figure><figcaption>{what}.{beyond}</figcaption>{plot}</figure>"


def _pair(*figures: str) -> str:
    return '<div class="pair">\n' + "\n".join(figures) + "\n</div>"


def _lengths(overview: Overview) -> str:
    seconds, pace = overview.seconds, overview.words_per_second
    return (
        f'<section>\n<h2>Length and pace</h2>\n<p class="soft legend">{_legend(list(overview.sides))}</p>\n'
        f"{_pair(_figure('Clips by seconds', seconds), _figure('Clips by words a second', pace))}\n"
        f'<p class="soft">The shortest clip has {seconds.low:.2f} s, the longest {seconds.high:.2f} s; nine in ten last '
        f"{seconds.p5:.1f} to {seconds.p95:.1f} s and have {pace.p5:.1f} to {pace.p95:.1f} words a second.</p>\n</section>"
    )


def _sound(overview: Overview) -> str:
    rates = {f"{rate:,} Hz": count for rate, count in overview.sampling_rates.items()}
    channels = {
        ("mono", "stereo")[number - 1] if number < 3 else f"{number} channels": count
        for number, count in overview.channels.items()
    }
    level, peak = overview.rms_dbfs, overview.peak_dbfs
    narrow = sum(count for rate, count in overview.sampling_rates.items() if rate < 16_000)
    below = f" {narrow:,} were recorded below 16,000 Hz: the upper part of their spectrum is empty." if narrow else ""
    return (
        f'<section>\n<h2>Sound</h2>\n<p class="soft legend">{_legend(list(overview.sides))}</p>\n'
        f"{_pair(_figure('Clips by loudness (RMS, dBFS)', level), _figure('Clips by their peak (dBFS)', peak))}\n"
        f"{_pair(_bars('Sampling rate', rates), _bars('Channels', channels))}\n"
        f'<p class="soft">{overview.at_full_scale:,} clips touch full scale.{below}</p>\n</section>'
    )


def _bars(caption: str, counts: Mapping[str, int], top: int | None = None) -> str:
    most = top or max(counts.values())
    rows = "\n".join(
        f"<tr><td>{escape(name)}</td><td>{plots.stack([(f'{name}: {count:,}', count)], most)}</td><td>{count:,}</td></tr>"
        for name, count in counts.items()
    )
    return f'<table class="bars">{f"<caption>{caption}</caption>" * bool(caption)}<tbody>\n{rows}\n</tbody></table>'


def _words(overview: Overview) -> str:
    words = overview.words
    common = words.frequent[:COMMON]
    long = -(-len(common) // 4)  # the columns stand two and two on a phone
    columns = [_bars("", dict(common[start : start + long]), common[0][1]) for start in range(0, len(common), long)]
    facts = [
        f"{words.vocabulary:,} different words, {words.once:,} of them said once; {words.sentences:,} different transcripts."
    ]
    if words.unheard is not None:
        facts.append(f"{words.unheard:.1%} of the words to validate on never occur in training.")
    if words.heard_sentences is not None:
        facts.append(f"{words.heard_sentences:.1%} of the utterances to validate on have a transcript that training has too.")
    return (
        f'<section>\n<h2>Words</h2>\n<p class="soft">{" ".join(facts)} As the metric compares them, most frequent first:</p>\n'
        f'<div class="trio">\n{"".join(columns)}\n</div>\n</section>'
    )


def _skipped(overview: Overview) -> str:
    body = _bars("", overview.skipped) if overview.skipped else "<p>Every utterance of the manifests could be used.</p>"
    return f"<section>\n<h2>Skipped</h2>\n{body}\n</section>"


def _suspicious(overview: Overview, players: Mapping[str, str]) -> str:
    kinds = "\n".join(_kind(rule, overview.suspected[rule.key]) for rule in RULES)
    shown = listed(overview.suspects)
    rows = "\n".join(_suspect(one, players.get(one.utterance_id)) for one in shown)
    some = f"{len(shown):,} of {len(overview.suspects):,}, each reason in its turn. " * (len(shown) < len(overview.suspects))
    table = (
        f'<p class="soft">{some}A heading sorts.</p>\n<table class="worst">\n'
        f"<thead>{page.sortable_head(HEADINGS, '')}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n"
    )
    return (
        '<section>\n<h2>Suspicious</h2>\n<p class="soft">Unusual, not certainly wrong: listen, then mend the manifest or take '
        f'the line out.</p>\n<table class="kinds">\n<tbody>\n{kinds}\n</tbody>\n</table>\n{table if shown else ""}</section>'
    )


def _kind(rule: Rule, count: int) -> str:
    row = "<tr>" if count else '<tr class="none">'
    return f"{row}<td>{rule.title}</td><td>{count:,}</td><td>{escape(rule.why)}</td></tr>"


def _suspect(one: Shown, flac: str | None) -> str:
    titles = {rule.key: rule.title for rule in RULES}
    reasons = "".join(f'<span class="why">{titles[key]}: {escape(what)}</span>' for key, what in one.reasons.items())
    figures: dict[str, tuple[object, str]] = {
        "seconds": (one.seconds, f"{one.seconds:.1f}"),
        "words": (one.words, f"{one.words:,}"),
        "dBFS": (one.rms_dbfs, f"{one.rms_dbfs:.0f}".replace("-", "−")),
        "age": (one.age_bucket, escape(one.age_bucket)),
        "child": (one.child_id, escape(one.child_id)),
    }
    key = escape(f"{titles[next(iter(one.reasons))]} {one.text}")
    name = f'<div class="id">{escape(one.utterance_id)}, {escape(one.side)}</div>'
    text = f'<td class="text" data-key="{key}">{reasons}{escape(one.text)}{page.player(flac)}{name}</td>'
    return f"<tr>{text}{page.sortable_cells(figures)}</tr>"


def _samples(overview: Overview, players: Mapping[str, str]) -> str:
    cards = "\n".join(
        f'<div class="card">{escape(one.text)}{page.player(players.get(one.utterance_id))}<div class="soft">'
        f"{escape(one.age_bucket)}, {one.seconds:.1f} s, {escape(one.side)}</div></div>"
        for one in overview.samples
    )
    return f'<section>\n<h2>Some of each age, as drawn</h2>\n<div class="cards">\n{cards}\n</div>\n</section>'


def _footer() -> str:
    return (
        "<p>Measured on the audio by kidspeech prepare. Plots show shares of each side’s clips or children; where a tail is "
        f"long, {TAIL:.1%} of them one by one. Words are those of Whisper’s English normalisation with the contest’s "
        f"spellings.</p>\n<p>kidspeech {escape(__version__)}</p>"
    )
