"""
Commands as lists: what is quoted, what is pinned, and that no key is in them.
"""

from __future__ import annotations

import io
import shlex
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kidspeech.runpod.catalog import choose, cuda_of
from kidspeech.runpod.models import Door, GpuType, NetworkVolume, Pod
from kidspeech.runpod.plan import Order, Plan
from kidspeech.runpod.remote import parse_end, parse_state
from kidspeech.runpod.settings import Settings, load_settings
from kidspeech.runpod.ssh import Target, clean_environ, plain, rsync_argv, ssh_argv, target
from kidspeech.runpod.sums import read_sums
from kidspeech.runpod.wheel import bundle

pytestmark = pytest.mark.unit
TO = Target(Door(host="1.2.3.4", port=40022), Path("/home/a b/id"), Path("/p/100%/known_hosts"), "pod1.20261122T120000")
VOLUME = NetworkVolume(id="v", name="kids", size=50, dataCenter="eu-ro-1")


def settings(tmp_path: Path) -> Settings:
    file = tmp_path / ".runpod.env"
    file.write_text("RUNPOD_API_KEY=rpa_SECRET\nNETWORK_VOLUME_ID=v\n")
    return load_settings(file, {})


def test_a_remote_command_is_quoted_once() -> None:
    """
    A path with a blank and a recipe that would be two commands arrive as they are.
    """
    words = ["kidspeech", "train", "a;b.yaml", "--data", "/w/my data", "x='$(id)'"]
    argv = ssh_argv(TO, words)
    assert shlex.split(argv[-1]) == words
    assert argv[-2] == "root@1.2.3.4"


def test_hosts_are_pinned_per_pod_and_project() -> None:
    """
    accept-new into the project's own file under the pod's name; never "no", and nothing of ~/.ssh/config.
    """
    argv = ssh_argv(TO, ["true"])
    options = {argv[n + 1].split("=")[0]: argv[n + 1].split("=", 1)[1] for n, word in enumerate(argv) if word == "-o"}
    assert options["StrictHostKeyChecking"] == "accept-new"
    assert options["HostKeyAlias"] == "pod1.20261122T120000"
    assert options["UserKnownHostsFile"] == '"/p/100%%/known_hosts"'
    assert options["IdentityFile"] == '"/home/a b/id"'
    assert (options["BatchMode"], options["ForwardAgent"]) == ("yes", "no")
    assert argv[argv.index("-F") + 1] == "/dev/null"


def test_each_start_of_a_pod_has_its_own_host_key(tmp_path: Path) -> None:
    """
    The container makes new ones with each fresh disk.
    """
    pod = Pod(id="p1", name="n", status="RUNNING", startedAt=datetime(2026, 11, 22, 12, tzinfo=UTC))
    later = pod.model_copy(update={"started": datetime(2026, 11, 22, 13, tzinfo=UTC)})
    assert target(settings(tmp_path), pod, TO.door).alias != target(settings(tmp_path), later, TO.door).alias


def test_a_tunnel_listens_here_only() -> None:
    """
    TensorBoard is nobody else's business, and a port that is taken is an error.
    """
    argv = ssh_argv(TO, forward=(6006, 6007))
    assert "127.0.0.1:6006:127.0.0.1:6007" in argv
    assert "ExitOnForwardFailure=yes" in argv


def test_rsync_reads_its_shell_back(tmp_path: Path) -> None:
    """
    -e is one word that rsync splits again, hidden files stay here, and a path is no option.
    """
    argv = rsync_argv(TO, "/data/", "/w/d/", upload=True, remote_rsync=["sh", "-c", 'flock x rsync "$@"', "rsync"])
    assert shlex.split(argv[argv.index("-e") + 1])[:3] == ["ssh", "-F", "/dev/null"]
    assert argv[-3:] == ["--", "/data/", "root@1.2.3.4:/w/d/"]
    assert "--exclude=.*" in argv
    assert "--checksum" in argv
    assert not any(word.startswith(("-a", "-l", "--links")) for word in argv)


def test_ssh_sees_no_key_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Its environment is the little it needs.
    """
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_SECRET")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "rps_SECRET")
    assert not any("SECRET" in value for value in clean_environ().values())


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("loss 0.5\n", "loss 0.5"),
        ("\x1b]0;title\x07\x1b[2Jx", "]0;title[2Jx"),
        ("10%\r20%\r30%", "30%"),
        ("a\tb\u202ec", "a bc"),
    ],
)
def test_a_line_of_the_log_drives_no_terminal(raw: str, shown: str) -> None:
    """
    It comes from a machine that runs code from the internet.
    """
    assert plain(raw) == shown


def test_what_a_pod_says_is_data() -> None:
    """
    Lines that are no such thing count as not there.
    """
    state = parse_state({"job": "running", "generation": "000003", "owner": "p\x1b[1m", "end": "{", "last": "x\x07"})
    assert (state.running, state.generation, state.owner, state.end, state.last) == (True, 3, "p[1m", None, "x")
    assert parse_end('{"pod":"p","generation":"000003","key":"k","code":0}') is not None
    assert read_sums("no\n" + "0" * 32 + "  best/a b\n") == {"best/a b": "0" * 32}


def test_types_with_stock_come_first(tmp_path: Path) -> None:
    """
    Else in the user's order; the data centre is written as RunPod needs it.
    """
    none = [{"id": "EU-RO-1", "availability": "NONE"}]
    some = [{"id": "EU-RO-1", "availability": "LOW"}]
    catalog = [
        GpuType.model_validate({"id": f"NVIDIA {n}", "name": n, "price": {"secure": p}, "dataCenters": d})
        for n, p, d in (("A", 1, none), ("B", 2, some), ("C", 3, some))
    ]
    found = choose(catalog, ["nvidia a", "C", "B"], VOLUME)
    assert [(c.gpu, c.data_center, c.price) for c in found] == [
        ("NVIDIA C", "EU-RO-1", 3),
        ("NVIDIA B", "EU-RO-1", 2),
        ("NVIDIA A", "EU-RO-1", 1),
    ]
    plan = Plan(Order("r", tmp_path, tmp_path / "run", max_hours=2), settings(tmp_path), VOLUME, found, ())
    assert plan.ceiling == pytest.approx(3 * (2 + 5 / 60))


def test_the_driver_must_know_the_images_cuda() -> None:
    """
    As its name tells it.
    """
    assert cuda_of("runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404") == "12.8"
    assert cuda_of("me/mine:latest") is None


def test_the_wheel_is_this_package_and_nothing_else() -> None:
    """
    The same bytes each time, with the command line and the scripts, and no hidden file.
    """
    first, second = bundle(), bundle()
    names = zipfile.ZipFile(io.BytesIO(first.wheel)).namelist()
    assert first.fingerprint == second.fingerprint
    assert {"kidspeech/cli/main.py", "kidspeech/runpod/pod.sh", "kidspeech/recipes/whisper-small.yaml"} <= set(names)
    assert not any(part.startswith(".") for name in names for part in name.split("/"))
    assert "torch==" not in first.constraints
