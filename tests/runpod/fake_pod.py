"""
A pod made of processes on this machine: the container's command, a real sshd with its own keys on its own port, a home
folder for the container's disk, and the folder that stands for the volume.
"""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

SSHD = shutil.which("sshd") or next((p for p in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if Path(p).exists()), None)
NEEDED = {"sshd": SSHD, **{tool: shutil.which(tool) for tool in ("ssh", "ssh-keygen", "rsync", "tmux", "flock", "curl")}}
MISSING = [tool for tool, path in NEEDED.items() if path is None]
STAND_IN = Path(__file__).with_name("stand_in.py")


def free_port() -> int:
    """
    Return a port nobody listens on at the moment.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


GUARDIAN = """
cat >/dev/null
for _ in 1 2 3; do
  for pid in $(grep -las -- "$1" /proc/[0-9]*/environ /proc/[0-9]*/cmdline | cut -d/ -f3 | sort -u); do
    test "$pid" = $$ || kill -9 "$pid" 2>/dev/null
  done
done
"""


def guard(folder: Path) -> subprocess.Popen[bytes]:
    """
    Start a process that ends whatever has *folder* in its command or environment as soon as its stdin closes: also when
    the tests are killed, whose pods would go on for ever.
    """
    argv = ["bash", "-c", GUARDIAN, "guardian", f"{folder}/"]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)


class Image:
    """
    What an image brings: /start.sh, and the programs in its PATH.
    """

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.passed = folder / "passed"
        """Seconds by which the uptime that a pod reads is ahead: a test lets them go by."""
        self.pass_time(0)
        self.program(
            "cut",
            f"""
            test "$3" = /proc/uptime || exec {shutil.which("cut")} "$@"
            read -r now _ </proc/uptime; read -r passed <{self.passed}
            echo $((${{now%.*}} + passed))
        """,
        )
        self.behaviour = folder / "job.conf"
        """key=value lines that the stand-in for `kidspeech train` reads."""
        self.behaviour.write_text("steps=3\ndelay=0.05\n")
        self.start = folder / "start.sh"
        self.program(
            "start.sh", 'test -z "$FAKE_NO_SSHD" || exec sleep 1000\nsleep "${FAKE_LATE:-0}"\nexec $FAKE_SSHD', self.start
        )
        self.python_without_installing()

    def pass_time(self, seconds: int) -> None:
        """
        Set how far ahead the pods' uptime is.
        """
        beside = self.passed.with_suffix(".new")
        beside.write_text(f"{seconds}\n")
        beside.replace(self.passed)

    def program(self, name: str, text: str, path: Path | None = None) -> None:
        """
        Add a shell script to the image.
        """
        file = path or self.bin / name
        file.write_text("#!/bin/bash\n" + textwrap.dedent(text) + "\n")
        file.chmod(0o755)

    def python_without_installing(self, pip: str = "exit 0") -> None:
        """
        Give the image a python3 whose environments hold the stand-in, so that a test takes no minute to install torch.
        """
        behaviour = shlex.quote(str(self.behaviour))
        self.program(
            "python3",
            f"""
            test "$1 $2" = "-m venv" || exec {sys.executable} "$@"
            mkdir -p "$4/bin"
            printf '#!/bin/bash\\n%s\\n' {shlex.quote(pip)} >"$4/bin/python"
            printf '#!/bin/bash\\nexec {sys.executable} -S -E {STAND_IN} {behaviour} "$@"\\n' >"$4/bin/kidspeech"
            chmod +x "$4"/bin/*
            """,
        )

    def python_with_packages_of_tests(self) -> None:
        """
        Give the image a python3 whose environments see the packages of the tests: they are the image's, as CUDA torch is.
        """
        packages = " ".join(path for path in sys.path if path.endswith("site-packages"))
        self.program(
            "python3",
            f"""
            test "$1 $2" = "-m venv" || exec {sys.executable} "$@"
            {sys.executable} -m venv "$4" || exit $?
            for lib in "$4"/lib/python*/site-packages; do
              rm -rf "$lib"/setuptools*  # older than what torch wants
              printf "%s\\n" {packages} >"$lib/image.pth"
            done
            """,
        )


class FakePod:
    """
    One container, from its start to its end.
    """

    def __init__(self, pod_id: str, folder: Path, image: Image, env: dict[str, str], args: str) -> None:
        self.id, self.folder, self.image, self.args = pod_id, folder, image, args
        self.port = free_port()
        self.home = folder / "home"
        self.env = env
        self._roots: list[int] = []
        self.folder.mkdir(parents=True)

    def start(self, **extra: str) -> None:
        """
        Run the container's command on a fresh disk, with fresh host keys.
        """
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir()
        self._write_sshd(extra)
        clean = {"PATH": f"{self.image.bin}:{os.environ['PATH']}", "HOME": str(self.home), "LANG": "C.UTF-8"}
        command = shlex.split(self.args.replace("/start.sh", str(self.image.start))) or [str(self.image.start)]
        with (self.folder / "container.log").open("ab") as log:
            main = subprocess.Popen(
                command,
                env={
                    **clean,
                    **self.env,
                    **extra,
                    "FAKE_POD": self.id,
                    "FAKE_SSHD": f"{SSHD} -D -e -f {self.folder}/sshd_config",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.home,
            )
        self._roots = [main.pid]
        threading.Thread(target=main.wait, daemon=True).start()  # so that it leaves no zombie

    def kill(self, only: str = "") -> int:
        """
        End every process of the container, or those whose command line has *only* in it; return how many.
        """
        killed = 0
        for _ in range(3):  # a process may fork while we look
            found = [pid for pid in self._processes() if only in _command(pid)]
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    continue
            if not found:
                break
        return killed

    def in_use(self) -> bool:
        """
        Tell whether something but the watchdog and sshd is at work in the container, or its watchdog not yet.
        """
        log = self.home / ".kidspeech" / "watchdog.log"
        words = ("/.kidspeech/pod.sh ", "/.kidspeech/bootstrap.sh ", "rsync --server")
        at_work = any(word in _command(pid) for pid in self._processes() for word in words)
        return at_work or not (log.exists() and "on watch" in log.read_text())

    def move_port(self) -> None:
        """
        Map ssh to another port, as a restart of the host does.
        """
        self.kill("sshd_config")
        self.port = free_port()
        self._write_sshd({})
        daemon = subprocess.Popen(
            [str(SSHD), "-D", "-e", "-f", str(self.folder / "sshd_config")],
            env={**os.environ, "FAKE_POD": self.id},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._roots.append(daemon.pid)
        threading.Thread(target=daemon.wait, daemon=True).start()

    def _processes(self) -> list[int]:
        """
        Return the container's processes: marked by their environment, or descended from such (sshd writes over its own).
        """
        marker, parents, found = f"FAKE_POD={self.id}\0".encode(), {}, set(self._roots)
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit():
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if marker in (entry / "environ").read_bytes() + b"\0":
                        found.add(int(entry.name))
            except OSError:
                continue
        for pid in sorted(parents):
            line = [pid]
            while line[-1] in parents and line[-1] not in found:
                line.append(parents[line[-1]])
            if line[-1] in found:
                found.update(line)
        return sorted(found & parents.keys())

    def _write_sshd(self, extra: dict[str, str]) -> None:
        key = self.folder / "host_key"
        if not key.exists() or not extra.get("FAKE_KEEP_KEYS"):
            key.unlink(missing_ok=True)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        (self.folder / "authorized_keys").write_text(self.env.get("PUBLIC_KEY", "") + "\n")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        session = {
            "HOME": str(self.home),
            "PATH": f"{self.image.bin}:{os.environ['PATH']}",
            "FAKE_POD": self.id,
            "PIP_NO_INDEX": "1",
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait take the cores from the other tests
        }
        session |= {key: self.env[key] for key in ("RUNPOD_POD_ID", "RUNPOD_API_KEY") if extra.get("FAKE_SESSION_ENV")}
        (self.folder / "sshd_config").write_text(
            textwrap.dedent(f"""
            Port {self.port}
            ListenAddress 127.0.0.1
            HostKey {key}
            PidFile none
            UsePAM no
            StrictModes no
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            PermitRootLogin prohibit-password
            MaxStartups 50
            AuthorizedKeysFile {self.folder}/authorized_keys
            SetEnv {" ".join(f"{key}={value}" for key, value in session.items())}
            """)
        )


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def user() -> str:
    """
    Return whom sshd lets in: it can become nobody else where the tests don't run as root.
    """
    return getpass.getuser()
