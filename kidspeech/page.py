"""
What the HTML pages share: page.html as their frame, tables, facts and players. A page stands by itself, with no script, font
or picture from elsewhere, and is written whole or not at all.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from kidspeech.errors import writing
from kidspeech.manifest import AudioIndex, Utterance

LONGEST = 30.0  # seconds that a player may have; 30 players of 30 s at 16 kHz come to 15 MB or so


def fill(*, title: str, header: str, main: Sequence[str], footer: str) -> str:
    """
    Return a page; *title* is plain text, the others are HTML.
    """
    frame = Template(resources.files("kidspeech").joinpath("page.html").read_text(encoding="utf-8"))
    return frame.substitute(title=escape(title), header=header, main="\n".join(main), footer=footer)


def write_page(path: Path, page: str) -> None:
    """
    Write *page*, whole or not at all.

    Raises:
        StorageError: the disk is full or can't be written.
    """
    aside = path.with_name(f"{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(page, encoding="utf-8", errors="replace")  # JSON may carry half a surrogate pair, a page may not
        aside.replace(path)


def embed(utterances: Sequence[Utterance], audio: AudioIndex) -> dict[str, str]:
    """
    Return FLAC as base64 for each utterance id whose audio is at hand and can be read.
    """
    found = {}
    for utterance in utterances:
        path = audio.find(utterance)
        if path is not None and (flac := _flac(path)):
            found[utterance.utterance_id] = base64.b64encode(flac).decode("ascii")
    return found


def player(flac: str | None) -> str:
    """
    Return the controls that play what embed() gave, or nothing.
    """
    return f'<audio controls preload="none" src="data:audio/flac;base64,{flac}"></audio>' if flac else ""


def head(names: Sequence[str], kinds: Mapping[int, str]) -> str:
    """
    Return a table's row of headings, with the class of each by its number.
    """
    cells = (f'<th scope="col" class="{kinds.get(number, "")}">{name}</th>' for number, name in enumerate(names))
    return f"<tr>{''.join(cells)}</tr>".replace(' class=""', "")


def sortable_head(names: Sequence[str], by: str) -> str:
    """
    Return a row of headings that sort; the table has the class worst, is sorted down *by* one, and its cells have a data-key.
    """
    cells = (f'<th scope="col"{_SORTED if name == by else ""}><button type="button">{name}</button></th>' for name in names)
    return f"<tr>{''.join(cells)}</tr>"


def sortable_cells(figures: Mapping[str, tuple[object, str]]) -> str:
    """
    Return the cells of a sortable row, each (what it is sorted by, what is shown as HTML), by heading.
    """
    return "".join(
        f'<td data-name="{name}" data-key="{escape(str(key))}">{shown}</td>' for name, (key, shown) in figures.items()
    )


def facts(figures: Mapping[str, str]) -> str:
    """
    Return figures with what they are, side by side.
    """
    cells = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in figures.items())
    return f'<dl class="facts">{cells}</dl>'


_SORTED = ' aria-sort="descending"'


def _flac(path: Path) -> bytes | None:
    # written anew, as 16-bit mono: browsers play that, and what can't be read here would not play there either
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            if not 0 < file.frames <= LONGEST * file.samplerate:
                return None
            wave, rate = file.read(dtype="float32", always_2d=True).mean(axis=1), file.samplerate
        out = io.BytesIO()
        soundfile.write(out, wave, rate, format="FLAC", subtype="PCM_16")
    except (soundfile.LibsndfileError, OSError):
        return None
    return out.getvalue()
