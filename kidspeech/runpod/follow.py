"""
Following a training on a pod: its log line by line, over connections that break, until it ends.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from kidspeech.errors import RemoteError, SshError
from kidspeech.runpod.models import Pod
from kidspeech.runpod.plan import Plan
from kidspeech.runpod.pods import Fleet
from kidspeech.runpod.remote import JobState, Remote
from kidspeech.runpod.ssh import Shell, plain, target

log = logging.getLogger(__name__)
OnLine = Callable[[str], None]
KEPT_LINES = 30
SAVE_SECONDS = 60


@dataclass
class Follower:
    """
    The reader of one run's log.
    """

    fleet: Fleet
    plan: Plan
    pod: Pod
    remote: Remote
    on_line: OnLine
    offset: int = 0
    """Bytes of the log that were read."""
    tail: list[str] = field(default_factory=list)
    """The last lines, for the message when it fails."""

    def until_end(self, seconds: float) -> JobState:
        """
        Read on until the training ends, whatever the connection does.

        Raises:
            RemoteError: the pod ended under the training, can't be reached any more, or *seconds* are over.
        """
        clock, job = self.fleet.clock, self.plan.places.path(self.plan.job_key)
        end = clock.monotonic() + seconds
        while clock.monotonic() < end:
            try:
                self._read(job, end - clock.monotonic())
                state = self.remote.state(job)
            except SshError as error:
                log.info("the log was cut: %s", error)
                self._reconnect()
                continue
            if not state.running:
                return state
            clock.sleep(min(1.0, self.fleet.timing.poll))  # it is writing its sums
        self._end_at_deadline()
        msg = (
            f"{self.plan.order.max_hours:g} h are over (--max-hours), and the pod has ended; the same command goes on "
            "from the newest checkpoint on the volume"
        )
        raise RemoteError(msg)

    def _end_at_deadline(self) -> None:
        try:
            self.remote.halt(SAVE_SECONDS)
        except SshError as error:
            log.info("the training did not save: %s", error)
        self.fleet.end(self.pod.id, keep=not self.pod.ours)

    def _read(self, job: str, seconds: float) -> None:
        with self.remote.log(job, self.offset) as process:
            limit = threading.Timer(seconds, process.terminate)
            limit.daemon = True
            limit.start()
            try:
                assert process.stdout  # a pipe
                for raw in process.stdout:
                    self.offset += len(raw)
                    self._show(raw)
            finally:
                limit.cancel()

    def _show(self, raw: bytes) -> None:
        line = plain(raw.decode(errors="replace"))
        self.tail = [*self.tail[-KEPT_LINES:], line]
        self.on_line(line)

    def _reconnect(self) -> None:
        """
        Find the pod again: its port may have changed, it may be gone.
        """
        fleet = self.fleet
        give_up = fleet.clock.monotonic() + fleet.timing.lost
        while fleet.clock.monotonic() < give_up:
            fleet.clock.sleep(fleet.timing.poll)
            now = fleet.api.pod(self.pod.id)
            if now is None or now.status in {"EXITED", "ERROR", "TERMINATED"}:
                msg = (
                    f"pod {self.pod.id} ended under the training ({now.status.lower() if now else 'it is gone'}); "
                    "the same command goes on from the newest checkpoint on the volume"
                )
                raise RemoteError(msg)
            if now.door is None:
                continue
            try:
                remote = Remote(Shell(target(fleet.settings, now, now.door)), now.id)
                remote.install(now.env)  # a restart of the container has taken them away
            except SshError as error:
                log.info("pod %s is out of reach: %s", now.id, error)
            else:
                self.remote = remote
                return
        msg = (
            f"pod {self.pod.id} runs and has been out of reach for {fleet.timing.lost:.0f} s. It ends itself when the "
            "training does, and the same command finds it again; `kidspeech runpod terminate` ends it now"
        )
        raise RemoteError(msg)
