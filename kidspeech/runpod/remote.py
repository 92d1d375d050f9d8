"""
The pod's side, as verbs: each call sends one command of pod.sh over ssh and reads its answer as data.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from subprocess import PIPE, Popen

from pydantic import BaseModel, ConfigDict, ValidationError

from kidspeech.errors import JobError, RemoteError, SshError
from kidspeech.runpod.pods import script
from kidspeech.runpod.ssh import Shell, clean_environ, plain, ssh_argv
from kidspeech.runpod.sums import read_sums
from kidspeech.runpod.wheel import Bundle

END_OF_FILE = "KIDSPEECH_END_OF_FILE"
VERB = ("sh", "-c", 'exec bash "$HOME/.kidspeech/pod.sh" "$@"', "pod.sh")
BOOTSTRAP = ("sh", "-c", 'exec bash "$HOME/.kidspeech/bootstrap.sh" "$@"', "bootstrap.sh")
KIDSPEECH = ("sh", "-c", 'exec "$HOME/.kidspeech/env/bin/kidspeech" "$@"', "kidspeech")
"""The program on the pod, as words: only its shell knows its home folder."""
TENSORBOARD_PORT = 6006
"""Where it is looked for a free one from."""
ALREADY_RUNS, OUTNUMBERED = 75, 76


class JobEnd(BaseModel):
    """
    How a training ended, as pod.sh wrote it.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    pod: str
    generation: int
    key: str
    code: int
    ended: str = ""


@dataclass(frozen=True)
class JobState:
    """
    What is known on a pod about a run.
    """

    running: bool
    generation: int = 0
    """Number of its latest start; 0 where there was none."""
    owner: str = ""
    """The pod of that start."""
    end: JobEnd | None = None
    last: str = ""
    """The log's last line."""

    @property
    def ended(self) -> JobEnd | None:
        """
        How the latest start ended; None while it runs, or where it was cut off.
        """
        return self.end if self.end is not None and self.end.generation == self.generation and not self.running else None


class Remote:
    """
    One pod with its scripts.
    """

    def __init__(self, shell: Shell, pod_id: str) -> None:
        self.shell = shell
        self.pod_id = pod_id

    def install(self, environment: Mapping[str, str]) -> None:
        """
        Send the scripts, check the image's tools, and start the watchdog where the container's command did not.

        Raises:
            RemoteError: the image lacks something.
        """
        given = [f"{key}={value}" for key, value in environment.items() if key.startswith("KIDSPEECH_")]
        known = [pair for pair in given if not pair.startswith("KIDSPEECH_WATCHDOG=")]
        try:
            self.shell.run(["sh", "-s", *known], stdin=_installer())
        except SshError as error:
            if error.code == 3:
                msg = f"this image can't be used (RUNPOD_IMAGE): {error}"
                raise RemoteError(msg) from None
            raise

    def state(self, job: str) -> JobState:
        """
        Return what the pod knows about the run with that job folder.
        """
        pairs = [line.partition("=") for line in self._verb("state", job).splitlines()]
        return parse_state({key: value for key, _, value in pairs})

    @contextmanager
    def preparing(self, seconds: float) -> Iterator[None]:
        """
        Be the only controller that sets this pod up while the block runs; the pod lets go when this process dies.

        Raises:
            SshError: another one takes longer than *seconds*.
        """
        with self.shell.stream([*VERB, "prepare", f"{seconds:.0f}"], stdin=PIPE) as process:
            if process.stdout is None or process.stdout.readline().strip() != b"held":
                msg = f"another controller keeps setting up pod {self.pod_id}"
                raise SshError(msg)
            yield

    def set_up(self, bundle: Bundle, code: str, cache: str, timeout: float) -> None:
        """
        Send kidspeech and install it, unless this very one is installed.

        Args:
            bundle: the wheel and its constraints.
            code: folder on the volume that keeps them.
            cache: folder on the volume for pip's cache.
            timeout: seconds for all of it.

        Raises:
            JobError: it does not install; the message has pip's last lines.
        """
        wheel, constraints = f"{code}/{bundle.name}", f"{code}/constraints.txt"
        self.save(constraints, bundle.constraints)
        if not self._there(wheel):
            self.shell.run(
                ["sh", "-c", 'base64 -d >"$1.new" && mv "$1.new" "$1"', "sh", wheel], stdin=bundle.text(), timeout=600
            )
        try:
            self.shell.run([*BOOTSTRAP, wheel, constraints, bundle.fingerprint, cache], timeout=timeout)
        except SshError as error:
            if error.code == 255:
                raise
            msg = f"kidspeech can't be installed on the pod: {error}"
            raise JobError(msg) from None

    def save(self, path: str, text: str) -> None:
        """
        Write a small file, with its folder.
        """
        self.shell.run(["sh", "-c", 'mkdir -p "${1%/*}" && cat >"$1"', "sh", path], stdin=text)

    def start(self, job: str, generation: int, key: str, run: str, command: list[str]) -> bool:
        """
        Start the training as that generation; False where it runs already or another controller was faster.
        """
        try:
            self._verb("start", self.pod_id, job, f"{generation:06d}", key, run, *command)
        except SshError as error:
            if error.code in {ALREADY_RUNS, OUTNUMBERED}:
                return False
            raise
        return True

    @contextmanager
    def log(self, job: str, offset: int) -> Iterator[Popen[bytes]]:
        """
        Open the log from that byte on; it ends when the training does.
        """
        with self.shell.stream([*VERB, "follow", job, str(offset)]) as process:
            yield process

    def halt(self, seconds: int) -> None:
        """
        Ask the training to save and end.

        Raises:
            SshError: it has not ended after *seconds*.
        """
        self._verb("halt", str(seconds), timeout=seconds + 30)

    def hold(self, seconds: int) -> None:
        """
        Keep the pod for so long without a training.
        """
        self._verb("hold", str(seconds))

    def tensorboard(self, run: str) -> int:
        """
        Serve a run's curves on the pod's loopback, and return the port there.

        Raises:
            SshError: it does not start.
        """
        return int(self._verb("curves", run, str(TENSORBOARD_PORT)))

    def attach(self) -> int:
        """
        Open the pod's tmux in this terminal, and return ssh's exit code when the user leaves it.
        """
        argv = ssh_argv(self.shell.target, [*VERB, "attach"], tty=True)
        return subprocess.run(argv, env=clean_environ(), check=False).returncode

    def verify(self, folder: str, seconds: int) -> None:
        """
        Wait until an upload is whole on the mount.

        Raises:
            SshError: it is not within *seconds*; the message names files.
        """
        self._verb("verify", folder, str(seconds), timeout=seconds + 3600)

    def sums(self, run: str) -> dict[str, str]:
        """
        Return the sums of what a fetch brings home: best/, run.json, tensorboard/.
        """
        return read_sums(self._verb("sums", run, timeout=600))

    def _there(self, path: str) -> bool:
        try:
            self.shell.run(["test", "-s", path])
        except SshError as error:
            if error.code != 1:
                raise
            return False
        return True

    def _verb(self, *words: str, timeout: float = 60.0) -> str:
        return self.shell.run([*VERB, *words], timeout=timeout)


def _installer() -> str:
    """
    Return a shell script that writes the scripts and runs the check: one connection instead of four.
    """
    names = ("watchdog.sh", "pod.sh", "bootstrap.sh")
    files = "".join(f"cat >{name} <<'{END_OF_FILE}'\n{script(name)}{END_OF_FILE}\n" for name in names)
    return f'umask 077\nmkdir -p "$HOME/.kidspeech"\ncd "$HOME/.kidspeech" || exit 1\n{files}exec bash pod.sh check "$@"\n'


def parse_state(pairs: Mapping[str, str]) -> JobState:
    """
    Read the lines of `pod.sh state`; what can't be read counts as not there.
    """
    number = pairs.get("generation", "0")
    return JobState(
        running=pairs.get("job") == "running",
        generation=int(number) if number.isascii() and number.isdigit() else 0,
        owner=plain(pairs.get("owner", "")),
        end=parse_end(pairs.get("end", "")),
        last=plain(pairs.get("last", "")),
    )


def parse_end(text: str | bytes) -> JobEnd | None:
    """
    Read job.json, or None where it is none.
    """
    try:
        return JobEnd.model_validate_json(text)
    except ValidationError:
        return None
