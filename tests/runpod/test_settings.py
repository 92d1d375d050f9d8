"""
.runpod.env: read as a shell would, written back with care.
"""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kidspeech.errors import SettingsError
from kidspeech.runpod.settings import load_settings, parse_env, write_pod_id

pytestmark = pytest.mark.unit
SECRET = "rpa_VERYSECRET"
MINIMAL = f"RUNPOD_API_KEY={SECRET}\nNETWORK_VOLUME_ID=vol1\n"


def write(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    file = tmp_path / ".runpod.env"
    file.write_bytes(text.encode())
    file.chmod(mode)
    return file


def test_reads_what_a_shell_reads() -> None:
    """
    Quotes, export and comments; a # within a word or quotes is none.
    """
    text = "# top\nexport A=1\nB = no\nC='x # y'  # z\nD=\"a b\"\nE=a#b\nF=\n#G=1\n H=2 # two\n"
    assert parse_env(text) == {"A": "1", "B": "no", "C": "x # y", "D": "a b", "E": "a#b", "F": "", "H": "2"}


def test_the_file_wins_and_the_environment_fills(tmp_path: Path) -> None:
    """
    An AWS account's keys that happen to be in the shell are not RunPod's.
    """
    file = write(tmp_path, MINIMAL + "POD_ID=\n")
    settings = load_settings(file, {"RUNPOD_API_KEY": "other", "POD_ID": "abc", "AWS_ACCESS_KEY_ID": "AKIA1"})
    assert settings.api_key.get_secret_value() == SECRET
    assert settings.pod_id == "abc"
    assert settings.s3 is None
    theirs = {"AWS_ACCESS_KEY_ID": "user_1", "AWS_SECRET_ACCESS_KEY": "rps_1"}
    assert load_settings(file, theirs).s3 is not None


def test_names_everything_that_is_missing_at_once(tmp_path: Path) -> None:
    """
    No guessing one by one.
    """
    file = write(tmp_path, "AWS_ACCESS_KEY_ID=user_1\nPOD_ID=a;b\nRUNPOD_MOUNT=relative\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})
    for words in ("RUNPOD_API_KEY", "NETWORK_VOLUME_ID", "belong together", "POD_ID", "RUNPOD_MOUNT"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ('"NVIDIA GeForce RTX 4090"', ("NVIDIA GeForce RTX 4090",)),
        ("NVIDIA L4, NVIDIA L40S", ("NVIDIA L4", "NVIDIA L40S")),
        ('"NVIDIA L4, NVIDIA L40S"', ("NVIDIA L4", "NVIDIA L40S")),
        ('"NVIDIA L4","NVIDIA L40S"', ("NVIDIA L4", "NVIDIA L40S")),
    ],
)
def test_gpu_types_in_order(tmp_path: Path, value: str, names: tuple[str, ...]) -> None:
    """
    One, or several in order of preference, quoted as people quote.
    """
    assert load_settings(write(tmp_path, f"{MINIMAL}GPU_TYPE={value}\n"), {}).gpu_types == names


def test_shows_no_secret(tmp_path: Path) -> None:
    """
    Neither printed nor in an error's words.
    """
    settings = load_settings(write(tmp_path, MINIMAL + "AWS_ACCESS_KEY_ID=user_1\nAWS_SECRET_ACCESS_KEY=rps_HIDDEN\n"), {})
    assert SECRET not in repr(settings) + str(settings)
    assert "rps_HIDDEN" not in repr(settings)


def test_warns_where_others_can_read(tmp_path: Path) -> None:
    """
    Keys in a file that the whole machine reads are worth a sentence.
    """
    assert load_settings(write(tmp_path, MINIMAL, 0o600), {}).warnings == ()
    assert "chmod 600" in load_settings(write(tmp_path, MINIMAL, 0o644), {}).warnings[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("A=1\nPOD_ID=old # mine\n# end\n", "A=1\nPOD_ID=new1 # mine\n# end\n"),
        ("POD_ID=   # written back\nB=2", "POD_ID=new1   # written back\nB=2"),
        ("export POD_ID='old'\r\nB=2\r\n", "export POD_ID=new1\r\nB=2\r\n"),
        ("#POD_ID=x\nA=1", "#POD_ID=x\nA=1\nPOD_ID=new1\n"),
        ("", "POD_ID=new1\n"),
    ],
)
def test_writes_the_pod_id_and_nothing_else(tmp_path: Path, before: str, after: str) -> None:
    """
    Comments, order, line ends and mode stay as they are.
    """
    file = write(tmp_path, before, 0o640)
    write_pod_id(file, "new1")
    assert file.read_bytes().decode() == after
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [file]


def test_writes_through_a_link(tmp_path: Path) -> None:
    """
    A file kept elsewhere stays there.
    """
    (tmp_path / "kept").mkdir()
    real = write(tmp_path / "kept", "POD_ID=\n")
    (tmp_path / "link").symlink_to(real)
    write_pod_id(tmp_path / "link", "p1")
    assert (tmp_path / "link").is_symlink()
    assert real.read_text() == "POD_ID=p1\n"


def test_an_id_from_the_api_is_data(tmp_path: Path) -> None:
    """
    It can't write further lines.
    """
    file = write(tmp_path, MINIMAL)
    with pytest.raises(SettingsError):
        write_pod_id(file, "x\nRUNPOD_API_URL=http://evil")
    assert file.read_text() == MINIMAL


def test_the_example_names_what_is_read() -> None:
    """
    .runpod.env.example and the code can't drift apart.
    """
    example = Path(__file__).parents[2] / ".runpod.env.example"
    source = (Path(__file__).parents[2] / "kidspeech" / "runpod" / "settings.py").read_text()
    assert [key for key in parse_env(example.read_text()) if f'"{key}"' not in source] == []
