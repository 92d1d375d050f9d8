"""
Prepare under fire: killed, interrupted, run twice at once, out of disk, and with clips that take their worker with them.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pytest
import soundfile

from kidspeech import workers
from kidspeech.cache import FeatureCache
from kidspeech.clips import Clip
from kidspeech.config import load_recipe
from kidspeech.dataset import build_dataset
from kidspeech.errors import BusyError, StorageError
from kidspeech.features import read_audio
from kidspeech.progress import silent

from corpora import Corpus, make_corpus
from dying import PATIENCE, SHARD, Loudness, dying, wait_with_a_worker

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no kill -9 here"),
]
SPAWN = multiprocessing.get_context("spawn")  # as prepare starts its own workers


@pytest.fixture(name="small_shards", autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SHARD", SHARD)


def prepare(recipe: Path, corpus: Corpus, out: Path, cache: Path) -> None:
    """
    Prepare in this process.
    """
    settings = load_recipe(recipe, ["data.max_skipped=0.3"])
    build_dataset(settings, [corpus.manifest], corpus.audio_dirs, out, cache=cache)


def content(folder: Path) -> dict[Path, bytes]:
    """
    Return all files below *folder*.
    """
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finished(cache: Path) -> dict[Path, int]:
    """
    Return the finished shards, with the time each was written.
    """
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*.arrow")}


def clips_of(corpus: Corpus) -> list[Clip]:
    """
    Return the clips of *corpus*.
    """
    return [Clip.of(path) for folder in corpus.audio_dirs for path in sorted(folder.iterdir())]


@pytest.mark.slow
def test_killed_at_ten_moments_it_ends_with_the_same_bytes(recipe_file: Path, tmp_path: Path) -> None:
    """
    kill -9 at ten random lines, one run after the other: no finished shard is written twice, and the dataset is the one of
    a run that was left alone.
    """
    corpus, cache = make_corpus(tmp_path / "corpus", children=20), tmp_path / "cache2"
    moments = random.Random(3)
    with dying(recipe_file, corpus) as program:
        lines = program.prepare(tmp_path / "WHOLE", tmp_path / "cache1")["lines"]
        for _ in range(10):
            before = finished(cache)
            # with all shards there it still runs 0.45 of its lines, to write the dataset: none of the ten gets through
            killed = program.prepare(tmp_path / "DATA", cache, count=moments.randrange(1, int(0.4 * lines)))
            assert killed == {"code": -signal.SIGKILL}
            assert before.items() <= finished(cache).items()
        before = finished(cache)
        assert program.prepare(tmp_path / "DATA", cache)["code"] == 0

    assert len(before) == 8  # so some moments lay in the reading, and some in the writing of the dataset
    assert before.items() <= finished(cache).items()
    assert content(tmp_path / "DATA") == content(tmp_path / "WHOLE")
    assert not [*cache.rglob("*.at"), *cache.rglob("*.tmp"), *tmp_path.glob(".DATA.tmp")]


def test_ctrl_c_keeps_what_is_finished(recipe_file: Path, tmp_path: Path) -> None:
    """
    An interrupt at the 20th clip ends the run at once, and the next one goes on from the two finished shards.
    """
    corpus, cache = make_corpus(tmp_path / "corpus", children=12), tmp_path / "cache2"
    with dying(recipe_file, corpus) as program:
        answer = program.prepare(tmp_path / "DATA", cache, call="compute_row", count=20, number=signal.SIGINT)
    before = finished(cache)
    prepare(recipe_file, corpus, tmp_path / "DATA", cache)

    assert answer == {"code": -signal.SIGINT}
    assert len(before) == 2
    assert before.items() <= finished(cache).items()


def test_two_at_once_on_one_cache_do_not_mix(recipe_file: Path, tmp_path: Path) -> None:
    """
    The second is refused by the name of the cache, the first ends as if alone, and then the second finds all there.
    """
    corpus, cache = make_corpus(tmp_path / "corpus", children=12), tmp_path / "cache2"
    with dying(recipe_file, corpus) as first:
        stopped = first.prepare(tmp_path / "ONE", cache, call="compute_row", count=12, number=signal.SIGSTOP)
        with pytest.raises(BusyError, match=r"feature cache .*cache2"):
            prepare(recipe_file, corpus, tmp_path / "TWO", cache)
        ended = first.go_on()
    before = finished(cache)
    prepare(recipe_file, corpus, tmp_path / "TWO", cache)

    assert (stopped["code"], ended["code"]) == (None, 0)
    assert finished(cache) == before
    assert content(tmp_path / "ONE") == content(tmp_path / "TWO")


def test_a_clip_that_kills_its_worker_costs_one_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    With two workers, one deadly clip in 90: it is named, all others are there, and the count of the work is right.
    """
    monkeypatch.setattr(workers, "ALONE", 2)
    clips = clips_of(make_corpus(tmp_path / "corpus", children=30))
    deadly = clips[40]
    tone = read_audio(Path(deadly.path).read_bytes()).samples[:-7]
    soundfile.write(Path(deadly.path), tone, 16_000)
    clips[40] = deadly = Clip.of(Path(deadly.path))
    told: list[tuple[float, float, str]] = []
    cache = FeatureCache(tmp_path / "cache", Loudness((len(tone),)))
    rows = cache.rows(clips, lambda stage, done, total, note="": told.append((done, total, note)), 2)

    assert [row.small["path"] for row in rows if row.small["problem"]] == [deadly.path]
    assert rows[40].small["problem"].startswith("kills the process that reads it, also alone")
    assert told[-1][:2] == (90, 90)
    assert any(note == f"a worker died at {deadly.path}" for *_, note in told)
    assert not list(cache.folder.glob("*.at"))


def test_a_worker_that_was_killed_from_outside_costs_no_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What kills but once is tried alone, lives, and is kept.
    """
    monkeypatch.setattr(workers, "ALONE", 2)
    clips = clips_of(make_corpus(tmp_path / "corpus", children=4))
    samples = read_audio(Path(clips[5].path).read_bytes()).samples
    double = Loudness((len(samples),), once=str(tmp_path / "once"))

    assert not [row for row in FeatureCache(tmp_path / "cache", double).rows(clips, silent, 2) if row.small["problem"]]
    assert (tmp_path / "once").exists()


def test_a_process_that_died_alone_with_its_clip_is_remembered(tmp_path: Path) -> None:
    """
    A run without workers dies with its clip; the next one finds its note, tries the clip apart, and skips it.
    """
    clips = clips_of(make_corpus(tmp_path / "corpus", children=4))
    samples = read_audio(Path(clips[5].path).read_bytes()).samples[:-3]
    soundfile.write(Path(clips[5].path), samples, 16_000)
    clips[5] = Clip.of(Path(clips[5].path))
    cache = FeatureCache(tmp_path / "cache", Loudness((len(samples),)))
    first = SPAWN.Process(target=cache.rows, args=(clips, silent, 1))
    first.start()
    first.join(PATIENCE)

    assert first.exitcode == -signal.SIGKILL
    assert [row.index for row in cache.rows(clips, silent, 1) if row.small["problem"]] == [5]


def test_no_worker_outlives_its_parent() -> None:
    """
    After a kill -9 of the parent its worker goes too, instead of waiting for work for ever.
    """
    ours, theirs = SPAWN.Pipe()
    parent = SPAWN.Process(target=wait_with_a_worker, args=(theirs,))
    parent.start()
    assert ours.poll(PATIENCE)
    worker = ours.recv()
    assert _alive(worker)
    parent.kill()
    parent.join()

    end = time.monotonic() + PATIENCE
    while _alive(worker) and time.monotonic() < end:
        time.sleep(0.02)
    assert not _alive(worker)


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("mount"), reason="mounts, as root")
def test_a_full_disk_under_the_cache_keeps_finished_shards(tmp_path: Path) -> None:
    """
    The place is named, what was half written is gone, and with more room the rest is computed.
    """
    clips, disk = clips_of(make_corpus(tmp_path / "corpus", children=16)), tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    try:
        cache = FeatureCache(disk / "cache", Loudness())
        with pytest.raises(StorageError, match="No space left"):
            cache.rows(clips, silent, 1)
        before = finished(disk)
        assert 0 < len(before) < 6
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        assert len(cache.rows(clips, silent, 1)) == 48
        assert before.items() <= finished(disk).items()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_shard_that_lost_its_content_is_computed_again(tmp_path: Path) -> None:
    """
    After a power cut a file may have its name and not its bytes.
    """
    clips = clips_of(make_corpus(tmp_path / "corpus", children=4))
    cache = FeatureCache(tmp_path / "cache", Loudness())
    cache.rows(clips, silent, 1)
    shard = max(finished(tmp_path / "cache"), key=lambda path: path.stat().st_size)
    for damage in (b"", shard.read_bytes()[:700]):
        shard.write_bytes(damage)
        assert len(cache.rows(clips, silent, 1)) == 12
        assert pa.ipc.open_stream(shard.read_bytes()).read_all().num_rows == 8
