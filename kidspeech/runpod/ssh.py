"""
The system's ssh and rsync: pure functions build the argument lists, one class runs them.

A remote command is a list of words that is quoted exactly once, in `ssh_argv`.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kidspeech.errors import SshError
from kidspeech.runpod.clock import Clock
from kidspeech.runpod.models import Door, Pod
from kidspeech.runpod.settings import Settings

log = logging.getLogger(__name__)

KEPT = ("HOME", "PATH", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TERM", "TMPDIR", "SSH_AUTH_SOCK", "SYSTEMROOT")
CONNECTION_LOST = 255
RSYNC_HOPELESS = (1, 2, 3, 4, 126, 127)
"""rsync's codes for words it does not understand, and the shell's for no rsync: a second try does not heal those."""


@dataclass(frozen=True)
class Target:
    """
    One pod as ssh sees it.
    """

    door: Door
    key: Path
    known_hosts: Path
    alias: str
    """The name its host key is kept under: addresses are reused by other pods, and each start makes new keys."""
    control: Path | None = None
    """Socket of a connection that is open already; where nobody answers there, ssh makes its own."""


def target(settings: Settings, pod: Pod, door: Door) -> Target:
    """
    Return how to reach *pod*.
    """
    started = f"{pod.started:%Y%m%dT%H%M%S}" if pod.started else "new"
    return Target(door, settings.ssh_key, settings.folder / "known_hosts", f"{pod.id}.{started}")


def ssh_argv(
    to: Target, remote: Sequence[str] = (), *, tty: bool = False, forward: tuple[int, int] | None = None
) -> list[str]:
    """
    Return the command that runs *remote* on the pod.

    Args:
        to: the pod.
        remote: words of the command, unquoted.
        tty: give it a terminal.
        forward: a port here and the port on the pod's loopback that it leads to; then nothing is run.
    """
    there = [f"{to.door.username}@{to.door.host}"]
    if forward is not None:
        tunnel = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{forward[0]}:127.0.0.1:{forward[1]}"]
        return [*_base(to), *tunnel, *there]
    return [*_base(to), *(["-t"] if tty else ["-T"]), *there, *([shlex.join(remote)] if remote else [])]


def rsync_argv(to: Target, source: str, goal: str, *, upload: bool, remote_rsync: Sequence[str] = ("rsync",)) -> list[str]:
    """
    Return the rsync that copies the contents of a folder, or one file, to the pod or from it.

    Whole files are compared by checksum (what changed is what is sent), a cut transfer goes on where it was, links and
    devices are left out, and paths are not read by the remote shell.
    """
    host = f"{to.door.username}@{to.door.host}:"
    places = [source, host + goal] if upload else [host + source, goal]
    flags = ["-rt", "--checksum", "--partial-dir=.rsync-partial", "--secluded-args", "--timeout=60", "--chmod=D755,F644"]
    shell = ["-e", shlex.join(_base(to)), f"--rsync-path={shlex.join(remote_rsync)}"]
    flags += ["--exclude=.*", "--exclude=*.tmp", "--exclude=*.lock", "--exclude=*.part"] if upload else []
    return ["rsync", *flags, "--info=progress2", "--no-inc-recursive", "--outbuf=L", *shell, "--", *places]


def clean_environ() -> dict[str, str]:
    """
    Return the little of our environment that ssh needs: keys in it would be one `SendEnv` from the pod.
    """
    return {key: os.environ[key] for key in KEPT if key in os.environ}


class Shell:
    """
    Runs commands on one pod.
    """

    def __init__(self, to: Target, clock: Clock | None = None) -> None:
        self.target = to
        self._clock = clock or Clock()
        to.known_hosts.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def share(self) -> None:
        """
        Keep one connection open for the commands to come: each saves the second that a handshake takes.

        It runs `cat`, and ends when our end of its pipe closes, so also when this process is killed.
        """
        folder = Path(tempfile.mkdtemp(prefix="kidspeech-"))  # short: a socket's path has 104 bytes
        shared = replace(self.target, control=folder / "ssh")
        argv = ssh_argv(shared, ["cat"])
        argv[1:1] = ["-M"]
        master = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=clean_environ(),
            start_new_session=True,
        )
        weakref.finalize(self, _end_master, master, folder)
        self.target = shared

    def run(self, remote: Sequence[str], *, stdin: str = "", timeout: float = 60.0, tries: int = 3) -> str:
        """
        Run a command and return what it printed. Where the connection fails it is tried again: every command that is sent
        from here may run twice.

        Raises:
            SshError: it failed (with its code), the connection did (255), or it took longer than *timeout* seconds (None).
        """
        for left in reversed(range(tries)):
            try:
                return self._once(remote, stdin, timeout)
            except SshError as error:
                if error.code != CONNECTION_LOST or not left:
                    raise
                log.info("%s; trying again", error)
                self._clock.sleep(2.0)
        raise AssertionError  # the last try returned or raised

    @contextmanager
    def stream(self, remote: Sequence[str], *, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
        """
        Run a command whose output is read while it runs; leaving the block ends it.

        With a pipe as its stdin it can know that this process died: the pipe closes.
        """
        with _started(ssh_argv(self.target, remote), stdout=subprocess.PIPE, stdin=stdin) as process:
            yield process

    @contextmanager
    def tunnel(self, here: int, there: int) -> Iterator[subprocess.Popen[bytes]]:
        """
        Lead 127.0.0.1:*here* to the pod's loopback while the block runs.
        """
        own = replace(self.target, control=None)  # the shared connection would take the forward over and ssh would return
        with _started(ssh_argv(own, forward=(here, there)), stdout=subprocess.DEVNULL) as process:
            yield process

    def _once(self, remote: Sequence[str], stdin: str, timeout: float) -> str:
        try:
            done = subprocess.run(
                ssh_argv(self.target, remote),
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                env=clean_environ(),
                check=False,
                start_new_session=True,  # Ctrl-C is ours to handle, not ssh's
            )
        except subprocess.TimeoutExpired:
            msg = f"{shlex.join(remote[:3])} … did not end on the pod within {timeout:.0f} s"
            raise SshError(msg) from None
        if done.returncode == 0:
            return done.stdout
        raise SshError(_why(done.stderr or done.stdout, done.returncode), done.returncode)

    def copy(self, argv: Sequence[str]) -> Iterator[tuple[float, str]]:
        """
        Run an rsync of this pod and yield its progress: percent, and the rest of the line.

        Raises:
            SshError: with rsync's code.
        """
        with _started(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout and process.stderr  # both are pipes
            for raw in process.stdout:
                words = raw.decode(errors="replace").split("\r")[-1].split()
                if len(words) > 2 and words[1].endswith("%"):
                    yield float(words[1][:-1]), words[2]
            errors = process.stderr.read().decode(errors="replace")
            code = process.wait()
        if code != 0:
            raise SshError(_why(errors, code), code)


@contextmanager
def _started(
    argv: Sequence[str], stdout: int, stderr: int = subprocess.DEVNULL, stdin: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdin=stdin, stdout=stdout, stderr=stderr, env=clean_environ(), start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _end_master(master: subprocess.Popen[bytes], folder: Path) -> None:
    master.terminate()
    master.wait()
    if master.stdin is not None:
        master.stdin.close()
    shutil.rmtree(folder, ignore_errors=True)


def _base(to: Target) -> list[str]:
    options = {
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "IdentityFile": _option_path(to.key),
        "UserKnownHostsFile": _option_path(to.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "accept-new",
        "HostKeyAlias": to.alias,
        "ConnectTimeout": "10",
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "4",
        "ForwardAgent": "no",
        "LogLevel": "ERROR",
    }
    # No ~/.ssh/config: a `Host *` with a jump host or a shared connection there would break this in ways nobody can see.
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    shared = ["-S", str(to.control)] if to.control else []
    return ["ssh", "-F", "/dev/null", *shared, *words, "-p", str(to.door.port)]


def _option_path(path: Path) -> str:
    """
    Quote a path as ssh_config reads it: blanks end a value, and percent signs begin a token.
    """
    return f'"{str(path).replace("%", "%%")}"'


def _why(errors: str, code: int) -> str:
    lines = [plain(line) for line in errors.strip().splitlines() if line.strip()]
    what = "the connection to the pod failed" if code == CONNECTION_LOST else f"a command on the pod ended with code {code}"
    return f"{what}: {' | '.join(lines[-8:])}" if lines else what


def plain(text: str) -> str:
    """
    Return a line from elsewhere without what could drive a terminal: escapes, carriage returns, direction marks.
    """
    return "".join(c if c.isprintable() else " " if c == "\t" else "" for c in text.rstrip("\r\n").rsplit("\r", 1)[-1])
