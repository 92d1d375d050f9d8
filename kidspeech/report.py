"""
The scoring report: one HTML page that stands by itself, in the frame of kidspeech.page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from kidspeech import __version__, page, plots
from kidspeech.manifest import AudioIndex
from kidspeech.metrics import Clip, Difference, Group, Score
from kidspeech.metrics.alignment import Kind, Step
from kidspeech.metrics.bootstrap import FEW, LEVEL, RESAMPLES

WORST = 100  # clips in the table
SHOWN = 10  # errors of each kind
PLAYERS = 30  # of them with audio, the first ones
NAMES = {"wer": ("Word error rate", "WER", "words"), "ipa_cer": ("IPA character error rate", "CER", "characters")}
TITLES = {"age_bucket": "By age", "duration": "By length of the clip", "corpus": "By corpus"}
COLUMNS = ("alignment", "errors", "rate", "seconds", "age", "child")
MISSING = "·"  # stands in an alignment where one side has nothing


def write_report(
    path: Path,
    score: Score,
    *,
    title: str,
    differences: Sequence[Difference] = (),
    against: str = "",
    audio: AudioIndex | None = None,
) -> int:
    """
    Write the page on *score*, whole or not at all, and return how many players it has.

    Args:
        title: what was scored, such as the name of the predictions' file.
        differences: from compare().
        against: what they compare with.
        audio: where to look for the clips that get a player.

    Raises:
        StorageError: the disk is full or can't be written.
    """
    players = page.embed([clip.utterance for clip in score.worst(PLAYERS)], audio) if audio else {}
    page.write_page(path, build_report(score, title=title, differences=differences, against=against, players=players))
    return len(players)


def build_report(
    score: Score,
    *,
    title: str,
    differences: Sequence[Difference] = (),
    against: str = "",
    players: Mapping[str, str] | None = None,
) -> str:
    """
    Return the page as HTML.
    """
    shown = [key for key in TITLES if key in score.by]
    axis = plots.axis_of([score.total, *(group for key in shown for group in score.by[key])])
    tables = [_groups(key, score, axis) for key in shown]
    main = [*tables, _distributions(score), _against(score, differences, against), _confusions(score)]
    return page.fill(
        title=f"{NAMES[score.metric][1]} {score.figure:.4f}: {title}",
        header=_header(score, title),
        main=[*main, _worst(score, players or {})],
        footer=_footer(score),
    )


def _header(score: Score, title: str) -> str:
    name, _, units = NAMES[score.metric]
    tally, group = score.total.tally, score.total
    facts = {
        "clips": f"{group.clips:,}",
        "children": "unknown" if group.children is None else f"{group.children:,}",
        units: f"{tally.units:,}",
        "substituted": f"{tally.substitutions:,}",
        "left out": f"{tally.deletions:,}",
        "made up": f"{tally.insertions:,}",
        "exact clips": f"{group.exact / group.clips:.1%}",
    }
    if score.silence.clips:
        facts["silent clips with words"] = f"{score.silence.broken:,} of {score.silence.clips:,}"
    return (
        f'<h1>{name}</h1>\n<p class="soft file">{escape(title)}</p>\n'
        f'<p class="headline"><strong>{score.figure:.4f}</strong> <span>{_certainty(group)}</span></p>\n'
        f'<p class="soft">To the last digit, as the contest counts: {score.figure!r}</p>\n{page.facts(facts)}'
    )


def _certainty(group: Group) -> str:
    if group.interval is None:
        why = "some clips name no child" if group.children is None else "that takes at least two children with words"
        return f"no interval: {why}"
    return f"{LEVEL:.0%} interval {group.interval.low:.4f} to {group.interval.high:.4f}, over {group.children:,} children"


def _groups(key: str, score: Score, axis: plots.Axis) -> str:
    _, short, units = NAMES[score.metric]
    head = page.head(["", "", short, "95% interval", "clips", "children", units], {0: "", 1: "plot", 3: "more", 6: "more"})
    rows = "\n".join(_row(group, axis, score.figure) for group in score.by[key])
    foot = f'<tr><td></td><td class="plot">{plots.scale(axis)}</td><td colspan="5"></td></tr>'
    return (
        f'<section>\n<h2>{TITLES[key]}</h2>\n<table class="groups" data-groups="{key}">\n<thead>{head}</thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n<tfoot>{foot}</tfoot>\n</table>\n</section>"
    )


def _row(group: Group, axis: plots.Axis, overall: float) -> str:
    plot = plots.span(group, axis, overall)
    rate = "–" if group.rate is None else f"{group.rate:.4f}"
    span = f"{group.interval.low:.4f} to {group.interval.high:.4f}" if group.interval else "–"
    children = "?" if group.children is None else f"{group.children:,}"
    cells = f'<td>{rate}</td><td class="more">{span}</td><td>{group.clips:,}</td><td>{children}</td>'
    return (
        f'<tr><td>{escape(group.name)}</td><td class="plot">{plot}</td>{cells}<td class="more">{group.tally.units:,}</td></tr>'
    )


def _distributions(score: Score) -> str:
    clips = "Clips by their number of errors"
    drawn = [(clips, plots.bars(plots.errors_per_clip([clip.tally.errors for clip in score.clips]), clips))]
    if groups := score.by.get("child_id"):
        children = f"Children by their {NAMES[score.metric][1]}; the last bar holds all from 1"
        drawn.append((children, plots.bars(plots.spread(groups), children, at_edge=True)))
    figures = "\n".join(f"<figure><figcaption>{what}</figcaption>{plot}</figure>" for what, plot in drawn)
    return f'<section>\n<h2>Distribution</h2>\n<div class="pair">\n{figures}\n</div>\n</section>'


def _against(score: Score, differences: Sequence[Difference], against: str) -> str:
    if not differences:
        return ""
    short = NAMES[score.metric][1]
    head = page.head(["", f"its {short}", "difference", "95% interval", "ours is better"], {})
    rows = "\n".join(_difference(each) for each in differences)
    return (
        f'<section>\n<h2>Against <span class="file">{escape(against)}</span></h2>\n'
        '<p class="soft">Over the same clips, the same children drawn for both; below 0 this score is the better.</p>\n'
        f'<table class="against">\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</section>'
    )


def _difference(each: Difference) -> str:
    if each.difference is None or each.other is None:
        cells = ["–"] * 4
    else:
        span = f"{each.interval.low:+.4f} to {each.interval.high:+.4f}" if each.interval else "–"
        chance = "–" if each.probability is None else f"{each.probability:.1%}"
        cells = [f"{each.other:.4f}", f"{each.difference:+.4f}", span, chance]
    shown = "".join(f"<td>{cell}</td>" for cell in cells).replace("-", "−")
    return f"<tr><td>{escape(each.name)}</td>{shown}</tr>"


def _confusions(score: Score) -> str:
    titles: dict[Kind, str] = {"substitute": "Taken for another", "delete": "Left out", "insert": "Made up"}
    columns = []
    for kind, title in titles.items():
        found = [one for one in score.confusions if one.kind == kind][:SHOWN]
        rows = "\n".join(
            f"<tr><td>{_unit(Step(kind, one.reference, one.prediction), flat=True)}</td><td>{one.count:,}</td></tr>"
            for one in found
        )
        columns.append(f'<table data-kind="{kind}"><caption>{title}</caption><tbody>\n{rows}\n</tbody></table>')
    return f'<section>\n<h2>Most frequent errors</h2>\n<div class="trio">\n{"".join(columns)}\n</div>\n</section>'


def _unit(step: Step, *, flat: bool = False) -> str:
    said, heard = (escape(side.replace(" ", "␣")) for side in (step.reference, step.prediction))
    if step.kind == "equal":
        return f'<span class="u">{said}</span>'
    if flat:
        sides = [f"<del>{said}</del>"] * bool(said) + [f"<ins>{heard}</ins>"] * bool(heard)
        return f'<span class="{step.kind[0]}">{" → ".join(sides)}</span>'
    above = f"<del>{said}</del>" if said else f'<span class="gone">{MISSING}</span>'
    below = f"<ins>{heard}</ins>" if heard else f'<span class="gone">{MISSING}</span>'
    return f'<span class="u {step.kind[0]}">{above}{below}</span>'


def _worst(score: Score, players: Mapping[str, str]) -> str:
    clips = score.worst(WORST)
    if not clips:
        return "<section>\n<h2>Utterances</h2>\n<p>Every clip is exact.</p>\n</section>"
    rows = "\n".join(_utterance(clip, players.get(clip.utterance.utterance_id)) for clip in clips)
    head = page.sortable_head(COLUMNS, "errors")
    kind = "worst ipa" if score.metric == "ipa_cer" else "worst"
    return (
        f"<section>\n<h2>The {len(clips)} utterances that cost most</h2>\n{_LEGEND}\n"
        f'<table class="{kind}">\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</section>'
    )


_LEGEND = (
    '<p class="soft">What was said, and below it what was heard, normalised. '
    '<span class="s"><del>taken</del> for <ins>another</ins></span>, <span class="d"><del>left out</del></span>, '
    '<span class="i"><ins>made up</ins></span>. A heading sorts.</p>'
)


def _utterance(clip: Clip, flac: str | None) -> str:
    utterance, tally = clip.utterance, clip.tally
    steps = "".join(_unit(step) for step in clip.alignment.steps())
    seconds = utterance.audio_duration_sec
    figures = {
        "errors": (tally.errors, f"{tally.errors}"),
        "rate": (tally.rate, f"{tally.rate:.2f}"),
        "seconds": (seconds or 0, "–" if seconds is None else f"{seconds:.1f}"),
        "age": (utterance.age_bucket, escape(utterance.age_bucket)),
        "child": (utterance.child_id, escape(utterance.child_id) or "–"),
    }
    name = escape(utterance.utterance_id)
    text = f'{steps}{page.player(flac)}<div class="id">{name}</div>'
    return f'<tr><td class="text" data-key="{escape(clip.reference)}">{text}</td>{page.sortable_cells(figures)}</tr>'


def _footer(score: Score) -> str:
    how = (
        "Whisper's English text normalisation with the contest's spellings, then corpus WER by jiwer."
        if score.metric == "wer"
        else "The contest's IPA normalisation, then corpus CER by jiwer."
    )
    return (
        f"<p>{how} Intervals: {LEVEL:.0%}, percentile bootstrap, {RESAMPLES:,} draws of children with replacement. "
        f"An open dot has none: fewer than two children, or not known which. Over fewer than {FEW} children an interval is "
        f"too narrow. The dashed line is the figure over all clips.</p>\n<p>kidspeech {escape(__version__)}</p>"
    )
