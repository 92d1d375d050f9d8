"""
The report stands by itself, says what the score says, and lets no text out of its place.
"""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from kidspeech.errors import StorageError
from kidspeech.manifest import AudioIndex, Utterance
from kidspeech.metrics import compare, score
from kidspeech.page import embed
from kidspeech.plots import Axis
from kidspeech.report import PLAYERS, build_report, write_report

EVIL = '<script>alert("x")</script>'
REFERENCES = [
    Utterance("u1", "audio/u1.flac", "C1", age_bucket="5-7", orthographic_text="the red cat", audio_duration_sec=1.5),
    Utterance("u2", "audio/u2.wav", "C2", age_bucket="5-7", orthographic_text="a dog ran", audio_duration_sec=2.5),
    Utterance("u3" + EVIL, "audio/u3.flac", "C3" + EVIL, age_bucket="8-11", orthographic_text="three black cats"),
    Utterance("u4", "audio/u4.flac", "C3" + EVIL, age_bucket="8-11", orthographic_text="exact"),
]
PREDICTIONS = {"u1": "the bed cat", "u2": "a big dog", "u3" + EVIL: "one & two", "u4": "exact"}


class Page(HTMLParser):
    """
    A page as its tags with their attributes, its text, and the cells of each table's rows.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(text)
        self.rows = [[cell.strip() for cell in row] for row in self.rows]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def count(self, tag: str, **attributes: str) -> int:
        """
        How often *tag* stands there with these attributes.
        """
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.tags)


@pytest.fixture(scope="module")
def found():
    """
    A score.
    """
    return score(PREDICTIONS, REFERENCES, corpora=dict.fromkeys(PREDICTIONS, "my & corpus"))


@pytest.fixture(scope="module")
def page(found):
    """
    Its report.
    """
    other = score(dict.fromkeys(PREDICTIONS, ""), REFERENCES)
    text = build_report(found, title=f"p{EVIL}.jsonl", differences=compare(found, other), against="a<b>.jsonl")
    return Page(text)


@pytest.mark.unit
def test_nothing_comes_from_elsewhere(found):
    """No link, script, style sheet, picture or font is loaded, and the page's own policy forbids it."""
    text = build_report(found, title="p", players={"u1": "QUJD"})
    parsed = Page(text)
    assert not re.search(r"https?:|url\(|@import|//[a-z]", text)
    assert {name for name, attributes in parsed.tags if attributes.keys() & {"src", "href"}} == {"audio"}
    assert parsed.count("meta", **{"http-equiv": "Content-Security-Policy"}) == 1
    assert "default-src 'none'" in text


@pytest.mark.unit
def test_no_text_becomes_markup(page):
    """Texts, ids and file names are shown as they are; the page's own script is the only one."""
    assert page.count("script") == 1
    assert f"p{EVIL}.jsonl" in page.text
    assert f"C3{EVIL}" in page.text
    assert "my & corpus" in page.text
    assert "Against a<b>.jsonl" in page.text


@pytest.mark.unit
def test_the_figures_are_the_score_s(page, found):
    """The headline, its interval and each group's row hold the score's figures."""
    low, high = found.total.interval
    assert f"{found.figure:.4f}" in page.text
    assert repr(found.figure) in page.text
    assert f"95% interval {low:.4f} to {high:.4f}, over 3 children" in page.text
    rows = {row[0]: row[2:] for row in page.rows if len(row) == 7}
    assert rows["5-7"][0] == f"{found.by['age_bucket'][1].rate:.4f}"
    assert rows["5-7"][2:] == ["2", "2", "6"]
    assert rows["3-4"] == ["–", "–", "0", "0", "0"]
    assert rows["8-11"][1] == "–"  # one child: no interval
    assert [name for name in rows if name in ("1–2 s", "2–4 s", "unknown")] == ["1–2 s", "2–4 s", "unknown"]


@pytest.mark.unit
def test_an_open_dot_where_no_interval_is_claimed(page):
    """Groups of one child are drawn open, the others with their bar."""
    assert page.count("circle", **{"class": "open"}) > 0
    drawn = page.count("circle") - page.count("circle", **{"class": "open"})
    assert page.count("line", **{"class": "span"}) == drawn > 0


@pytest.mark.unit
def test_worst_utterances(page):
    """Each clip with an error has a row with its alignment and what it is sorted by; exact clips have none."""
    rows = [row for row in page.rows if len(row) == 6][1:]
    assert len(rows) == 3
    assert rows[0][1:] == ["3", "1.00", "–", "8-11", f"C3{EVIL}"]
    assert "redbed" in next(row[0] for row in rows if "u1" in row[0])
    assert page.count("th", **{"aria-sort": "descending"}) == 1
    assert page.count("button") == 6


@pytest.mark.unit
def test_all_exact():
    """A perfect score has a page too."""
    found = score({"u4": "exact"}, REFERENCES[3:])
    assert "Every clip is exact." in Page(build_report(found, title="p")).text


@pytest.mark.integration
def test_players(tmp_path, found):
    """The worst clips whose audio can be read get a player with FLAC that decodes to the sound; the others get none."""
    wave = np.sin(np.arange(8000) / 20).astype(np.float32) / 2
    soundfile.write(tmp_path / "u1.flac", wave, 8000)
    soundfile.write(tmp_path / "u2.wav", np.stack([wave, wave], axis=1), 22050, subtype="FLOAT")
    (tmp_path / "u3.flac").write_bytes(b"no sound")
    audio = AudioIndex([tmp_path])
    flacs = embed([clip.utterance for clip in found.worst(PLAYERS)], audio)
    assert set(flacs) == {"u1", "u2"}
    decoded, rate = soundfile.read(io.BytesIO(base64.b64decode(flacs["u2"])))
    assert (rate, decoded.shape) == (22050, (8000,))
    assert np.abs(decoded - wave).max() < 1e-4
    path = tmp_path / "out" / "report.html"
    assert write_report(path, found, title="p", audio=audio) == 2
    assert Page(path.read_text("utf-8")).count("audio") == 2


@pytest.mark.unit
def test_a_place_that_can_not_be_written(tmp_path, found):
    """Where the page can't be written, the error names the place."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"report\.html"):
        write_report(tmp_path / "file" / "report.html", found, title="p")


@pytest.mark.unit
@pytest.mark.parametrize(("top", "ends", "ticks"), [(0.5, 0.5, 6), (0.51, 0.6, 4), (0.043, 0.05, 6), (3.7, 4.0, 5)])
def test_axes_end_on_round_numbers(top, ends, ticks):
    """An axis holds its highest figure and has at most six ticks."""
    axis = Axis(top)
    assert (round(axis.top, 6), len(axis.ticks)) == (ends, ticks)


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on the PATH")
def test_sorting_in_a_browser(tmp_path, found):
    """A click on a heading sorts the utterances by it, and a second click turns them round."""
    click = "<script>document.querySelectorAll('.worst button')[5].click()</script></body>"
    path = tmp_path / "report.html"
    path.write_text(build_report(found, title="p").replace("</body>", click), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    dom = Page(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert [row[5][:2] for row in dom.rows if len(row) == 6][1:] == ["C3", "C2", "C1"]
    assert dom.count("th", **{"aria-sort": "descending"}) == 1
