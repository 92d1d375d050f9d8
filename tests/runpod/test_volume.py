"""
The volume's S3 door: a real S3 server with RunPod's quirks before it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from kidspeech.errors import VolumeError
from kidspeech.runpod.clock import Clock
from kidspeech.runpod.models import NetworkVolume
from kidspeech.runpod.settings import S3Settings
from kidspeech.runpod.storage import leftovers
from kidspeech.runpod.sums import NAME, md5_of, scan
from kidspeech.runpod.sync import pull_s3, push_s3
from kidspeech.runpod.volume import Volume, open_volume, safe_relative

from .s3_quirks import ACCESS, S3, SECRET

pytestmark = pytest.mark.integration
MB = 2**20


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    pytest.importorskip("moto.server", reason="moto[server] plays the volume's S3")
    (tmp_path / "mount").mkdir()
    with S3("vol123abc", tmp_path / "mount") as server:
        yield server


@pytest.fixture
def volume(s3: S3) -> Volume:
    """
    Open the volume, with pauses that take no time.
    """
    settings = S3Settings(access_key=SecretStr(ACCESS), secret_key=SecretStr(SECRET), endpoint=s3.url)
    known = NetworkVolume(id="vol123abc", name="kids", size=50, dataCenter="EU-RO-1")
    return open_volume(settings, known, Clock(sleep=lambda _: None))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """
    A dataset of a large shard and two small files.
    """
    folder = tmp_path / "data"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "0.arrow").write_bytes(os.urandom(12 * MB))
    (folder / "val.arrow").write_bytes(b"v" * 1000)
    (folder / "dataset.json").write_text("{}")
    return folder


def push(volume: Volume, folder: Path, part: int = 5 * MB) -> tuple[int, int]:
    done = push_s3(volume, folder, scan(folder), "kidspeech/data/d", part=part)
    return done.sent, done.kept


def test_sends_only_what_changed(volume: Volume, data: Path, s3: S3) -> None:
    """
    The second push sends nothing, the third one file, and what is gone here goes there.
    """
    assert push(volume, data) == (3, 0)
    assert push(volume, data) == (0, 3)
    (data / "val.arrow").write_bytes(b"w" * 1000)
    (data / "dataset.json").unlink()
    assert push(volume, data) == (1, 1)
    goal = s3.mount / "kidspeech/data/d"
    assert sorted(p.relative_to(goal).as_posix() for p in goal.rglob("*") if p.is_file()) == [
        NAME,
        "train/0.arrow",
        "val.arrow",
    ]
    assert (goal / "train/0.arrow").read_bytes() == (data / "train/0.arrow").read_bytes()


def test_deletes_one_by_one(volume: Volume, data: Path, s3: S3) -> None:
    """
    The batch call, which is answered with a redirect, is never made.
    """
    push(volume, data)
    volume.delete([entry.key for entry in volume.walk("kidspeech")])
    assert not any(p.is_file() for p in s3.mount.rglob("*"))
    assert not any("?delete" in line or line.startswith("POST  delete") for line in s3.log)


def test_a_cut_upload_goes_on_where_it_was(volume: Volume, data: Path, s3: S3) -> None:
    """
    A connection that is cut within a part costs that part.
    """
    s3.quirks.cut_at = 4
    assert push(volume, data)[0] == 3
    assert (s3.mount / "kidspeech/data/d/train/0.arrow").read_bytes() == (data / "train/0.arrow").read_bytes()


def test_a_killed_upload_goes_on_where_it_was(volume: Volume, data: Path, s3: S3) -> None:
    """
    Parts that are there from a process that died are not sent again.
    """
    s3.quirks.room = 8 * MB  # stops it after one part
    with pytest.raises(VolumeError, match="volume is full"):
        volume.put("kidspeech/data/d/train/0.arrow", data / "train/0.arrow", part=5 * MB)
    s3.quirks.room = 2**40
    s3.log.clear()
    volume.put("kidspeech/data/d/train/0.arrow", data / "train/0.arrow", part=5 * MB)
    assert sum("partNumber" in line for line in s3.log) == 2
    assert (s3.mount / "kidspeech/data/d/train/0.arrow").read_bytes() == (data / "train/0.arrow").read_bytes()


@pytest.mark.slow
def test_a_200_mb_upload_survives_a_cut(volume: Volume, s3: S3, tmp_path: Path) -> None:
    """
    In parts of 64 MB, as sent to the real service, with the third one cut in its middle.
    """
    file = tmp_path / "large"
    file.write_bytes(os.urandom(200 * MB))
    s3.quirks.cut_at = 3
    volume.put("k/large", file)
    assert sum("partNumber" in line for line in s3.log) == 5
    assert md5_of(s3.mount / "k/large") == md5_of(file)


def test_smaller_parts_where_large_ones_are_refused(volume: Volume, data: Path, s3: S3) -> None:
    """
    413 halves the parts until they pass.
    """
    s3.quirks.largest = 6 * MB
    volume.put("k/large", data / "train/0.arrow", part=20 * MB)
    assert (s3.mount / "k/large").stat().st_size == 12 * MB
    assert volume.abandon_uploads("k/") == 0


def test_a_full_volume_says_what_to_do(volume: Volume, data: Path, s3: S3) -> None:
    """
    507 is not tried again, and names the command that shows what can go.
    """
    s3.quirks.room = 100
    with pytest.raises(VolumeError, match="kidspeech runpod clean"):
        push(volume, data)
    assert not (s3.mount / "kidspeech/data/d" / NAME).exists()


def test_waits_where_a_fresh_object_is_forbidden(volume: Volume, data: Path, s3: S3) -> None:
    """
    403 on a fresh HEAD passes while the service hashes; the key is refused only after several.
    """
    s3.quirks.fresh_403 = 3
    assert push(volume, data)[0] == 3


def test_uploads_again_what_was_lost(volume: Volume, data: Path, s3: S3) -> None:
    """
    "Uploaded", then 404: seen in the field, and found by looking.
    """
    s3.quirks.lose = 1
    assert push(volume, data)[0] == 3
    assert len([p for p in s3.mount.rglob("*") if p.is_file()]) == 4


def test_a_listing_that_circles_is_finished_by_name(volume: Volume, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Every object is listed though the continuation token comes again; a listing without an end is an error, not half.
    """
    monkeypatch.setattr("kidspeech.runpod.volume.PAGE", 10)
    (s3.mount / "many").mkdir()
    for number in range(45):
        (s3.mount / "many" / f"{number:03d}").write_bytes(b"x")
    s3.quirks.circling = 2
    assert [entry.key for entry in volume.walk("many")] == [f"many/{number:03d}" for number in range(45)]
    assert s3.quirks.circling == 0


@pytest.mark.parametrize("status", [500, 502, 503, 504, 524, 429])
def test_passing_errors_are_tried_again(volume: Volume, s3: S3, status: int) -> None:
    """
    A busy service costs pauses.
    """
    s3.quirks.status = [status, status]
    volume.write("k/a", b"content")
    assert volume.read("k/a") == b"content"


def test_a_refused_key_is_named(volume: Volume, s3: S3) -> None:
    """
    403 that stays says which key it means, and shows none.
    """
    s3.quirks.status = [403]
    with pytest.raises(VolumeError, match="AWS_ACCESS_KEY_ID") as caught:
        volume.write("k/a", b"content")
    assert SECRET not in str(caught.value)


def test_fetches_and_verifies(volume: Volume, data: Path, s3: S3, tmp_path: Path) -> None:
    """
    A file that differs from its sum is an error, not a checkpoint.
    """
    push(volume, data)
    sums = {item.path: item.md5 for item in scan(data)}
    assert len(pull_s3(volume, "kidspeech/data/d", sums, tmp_path / "out")) == 3
    (s3.mount / "kidspeech/data/d/val.arrow").write_bytes(b"broken")
    (tmp_path / "out" / "val.arrow").unlink()
    with pytest.raises(VolumeError, match=r"1 of 3 .*val\.arrow"):
        pull_s3(volume, "kidspeech/data/d", sums, tmp_path / "out")


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "a/../../b", "C:/x", "a\\..\\b", "a\x1b[31m", ".", "a//b"]
)
def test_refuses_keys_that_lead_elsewhere(path: str, tmp_path: Path, volume: Volume) -> None:
    """
    What the volume or a pod names is data: it lands in the folder asked for or nowhere.
    """
    with pytest.raises(VolumeError, match="refused"):
        safe_relative(f"kidspeech/runs/r/{path}", "kidspeech/runs/r")
    with pytest.raises(VolumeError, match="refused"):
        pull_s3(volume, "kidspeech/runs/r", {path: "0" * 32}, tmp_path / "out")


def test_knows_what_can_go(volume: Volume, s3: S3) -> None:
    """
    The newest checkpoint and the best one of each run stay; a run that trains is left alone.
    """
    for key in ("r/step-000001/a", "r/step-000002/a", "r/best/a", "r.1/best/a", "busy/step-000001/a", "busy/step-000002/a"):
        path = s3.mount / "kidspeech/runs" / key
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 10)
    found = {item.folder: item.size for item in leftovers(volume, busy={"busy"})}
    assert found == {"kidspeech/runs/r/step-000001/": 10, "kidspeech/runs/r.1/": 10}
