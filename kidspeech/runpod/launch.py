"""
One command from a laptop to a finished checkpoint, in seven steps, read from top to bottom.

A pod that is obtained here is ended whatever happens, until a training runs on it; from then on it ends with the training:
by this process, or without it by the watchdog in the pod. Called again, each step finds what is done already.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from kidspeech.errors import BusyError
from kidspeech.progress import Progress, silent
from kidspeech.runpod.api import RunPod
from kidspeech.runpod.bring_home import Fetched, fetch, fetch_finished, report_failure
from kidspeech.runpod.catalog import first_that_has_one
from kidspeech.runpod.clock import Clock, Timing
from kidspeech.runpod.follow import Follower, OnLine
from kidspeech.runpod.models import Pod
from kidspeech.runpod.places import CACHE, CODE
from kidspeech.runpod.plan import Plan, remember_home
from kidspeech.runpod.pods import Fleet
from kidspeech.runpod.remote import KIDSPEECH, JobState, Remote
from kidspeech.runpod.sums import scan
from kidspeech.runpod.sync import push_rsync, push_s3
from kidspeech.runpod.volume import Volume, open_volume
from kidspeech.runpod.wheel import bundle

log = logging.getLogger(__name__)

STARTS = 3
"""How often a training is started that a restart of the container cut off."""


@dataclass(frozen=True)
class Outcome:
    """
    What a call of `run` came to.
    """

    pod: str
    """The pod; empty where none was needed."""
    running: bool
    """Whether the training goes on, because nobody waits for it."""
    files: tuple[Path, ...] = ()
    """What was fetched."""
    dollars: float = 0.0
    """What the pod has cost about, by its price and its age."""


def run(
    plans: Sequence[Plan],
    api: RunPod,
    *,
    detach: bool = False,
    progress: Progress = silent,
    on_line: OnLine = lambda _: None,
    clock: Clock | None = None,
    timing: Timing | None = None,
) -> Outcome:
    """
    Carry out the first of *plans* whose data centre has a GPU: push, obtain a pod, wait for it, set it up, train, follow,
    fetch, end it.

    Args:
        plans: from make_plans, which is step 1.
        api: the session it was made with.
        detach: return when the training runs. Ctrl-C while following does the same.
        progress: told of each step.
        on_line: given each line of the training's log, without control characters.
        clock, timing: how waits are timed.

    Raises:
        RemoteError: with what has ended and what has not; billing has, unless the message says otherwise.
        CapacityError: no data centre has a GPU; nothing was started.
        JobError: the training failed. Logs and checkpoints are on the volume, and its log is in the run folder.
        BusyError: --force-restart, while a training runs.
    """

    def carry_out(plan: Plan) -> Outcome:
        fleet = Fleet(plan.settings, api, clock or Clock(), timing or Timing())
        return Launch(plan, fleet, progress, on_line).run(detach=detach)

    return first_that_has_one(plans, carry_out)


class Launch:
    """
    One call of `run`: what its steps share.
    """

    def __init__(self, plan: Plan, fleet: Fleet, progress: Progress, on_line: OnLine) -> None:
        self.plan, self.fleet, self.progress, self.on_line = plan, fleet, progress, on_line
        s3 = plan.settings.s3
        self.volume: Volume | None = open_volume(s3, plan.volume, fleet.clock) if s3 else None
        self.job = plan.places.path(plan.job_key)
        self.restart = plan.order.force_restart
        self.tail: list[str] = []

    def run(self, *, detach: bool) -> Outcome:
        """
        Take the steps.
        """
        with self._one_start_at_a_time():
            done = self._finished_without_pod()
            if done is not None:
                return Outcome("", running=False, files=done.files)
            pod, remote, state = self._training_pod()
        if detach and state.running:
            return Outcome(pod.id, running=True, dollars=self._dollars(pod))
        try:
            state, remote = self._follow(pod, remote, state)
        except KeyboardInterrupt:
            return Outcome(pod.id, running=True, dollars=self._dollars(pod))
        return self._bring_home(pod, remote, state)

    def _finished_without_pod(self) -> Fetched | None:
        if self.volume is None or self.restart or self.fleet.of_run(self.plan.run):
            return None
        return fetch_finished(self.plan, self.volume, self.progress)

    def _training_pod(self) -> tuple[Pod, Remote, JobState]:
        """
        Steps 2 to 5: return a pod on which this run trains, or has just ended.
        """
        for _ in range(STARTS):
            there = next(iter(self.fleet.of_run(self.plan.run)), None)
            found = self._join(there) if there else None
            if found is None:
                found = self._prepare(there)
            if found is not None:
                return found
        msg = "other controllers keep starting this run; see `kidspeech runpod status`"
        raise BusyError(msg)

    def _join(self, pod: Pod) -> tuple[Pod, Remote, JobState] | None:
        """
        Return a pod that trains this run already; None where it is there and idle.
        """
        self.progress(f"4/7 joining pod {pod.id}", 0, 0)
        with self.fleet.or_end_unless_running(pod):
            remote = self._connect(pod)
        state = remote.state(self.job)
        if state.running and self.restart:
            msg = f"pod {pod.id} trains this run: end it with `kidspeech runpod stop` before --force-restart"
            raise BusyError(msg)
        return (pod, remote, state) if self._settled(state) else None

    def _prepare(self, pod: Pod | None) -> tuple[Pod, Remote, JobState] | None:
        """
        Push, obtain, wait, set up, start. None where another controller's pod trains this run now.
        """
        if self.volume is not None:
            self._push_s3(self.volume)
        self.progress("3/7 obtaining a pod", 0, 0)
        found = pod is not None
        pod = pod or self.fleet.obtain(self.plan, self.progress)
        remember_home(self.plan)
        # A pod that was found may be another controller's, until this one holds the lock.
        with nullcontext() if found else self.fleet.or_end(pod):
            self.progress("4/7 waiting for the pod", 0, 0, pod.id)
            remote = self._connect(pod)
            self.progress("5/7 setting up", 0, 0)
            with remote.preparing(self.fleet.timing.setup):
                if self._settled(state := remote.state(self.job)):
                    return pod, remote, state
                with self.fleet.or_end(pod):
                    recipe = self._send(remote)
                    if not self._start(remote, recipe):
                        self.fleet.end(pod.id)
                        return None
        return pod, remote, remote.state(self.job)

    def _settled(self, state: JobState) -> bool:
        """
        Tell whether a pod trains this run, or has ended it.
        """
        same = state.ended is not None and state.ended.key == self.plan.fingerprint
        return state.running or (same and not self.restart)

    def _push_s3(self, volume: Volume) -> None:
        for folder, key in self.plan.uploads:
            self.progress(f"2/7 pushing {folder.name}", 0, 0)
            pushed = push_s3(volume, folder, scan(folder, self._known_sums(folder), self.progress), key, self.progress)
            log.info("%s: %d files sent, %d already there", folder, pushed.sent, pushed.kept)

    def _connect(self, pod: Pod) -> Remote:
        remote = Remote(self.fleet.ready(pod, self.progress), pod.id)
        remote.install({**self.fleet.environment(self.plan, "terminate" if pod.ours else "stop"), **pod.env})
        return remote

    def _send(self, remote: Remote) -> str:
        """
        Bring data, weights, program and recipe to the pod; return the recipe's name there.
        """
        for folder, key in self.plan.uploads:
            goal = self.plan.places.path(key)
            if self.volume is None:
                self.progress(f"2/7 pushing {folder.name}", 0, 0)
                items = scan(folder, self._known_sums(folder), self.progress)
                push_rsync(remote.shell, folder, items, goal, self.progress, self.fleet.clock)
            remote.verify(goal, int(self.fleet.timing.visible))
        ours = bundle()
        code = self.plan.places.path(f"{CODE}/{ours.fingerprint}")
        remote.set_up(ours, code, self.plan.places.path(CACHE), self.fleet.timing.setup)
        recipe = Path(self.plan.order.recipe)
        if not recipe.is_file():
            return self.plan.order.recipe
        remote.save(f"{self.job}/recipe.yaml", recipe.read_text(encoding="utf-8"))
        return f"{self.job}/recipe.yaml"

    def _start(self, remote: Remote, recipe: str) -> bool:
        """
        Start the training; False where another pod trains in this run folder.
        """
        for _ in range(STARTS):
            state = remote.state(self.job)
            if state.running:
                return True
            if state.owner and state.owner != remote.pod_id and state.ended is None and self._alive(state.owner):
                return False
            command = self.plan.command(KIDSPEECH, recipe, restart=self.restart)
            if remote.start(
                self.job, state.generation + 1, self.plan.fingerprint, self.plan.places.run(self.plan.run), command
            ):
                self.restart = False  # from now on the same command resumes
                return True
        return False

    def _follow(self, pod: Pod, remote: Remote, state: JobState) -> tuple[JobState, Remote]:
        """
        Step 6, and starting anew what a restart of the container cut off.
        """
        follower = Follower(self.fleet, self.plan, pod, remote, self.on_line)
        self.progress("6/7 training", 0, 0, f"pod {pod.id}")
        for _ in range(STARTS):
            state = follower.until_end(self._seconds_left(pod))
            if state.ended is not None:
                break
            log.warning("the training was cut off without an end (did the container restart?); starting it again")
            follower.remote.install(pod.env)
            self._start(follower.remote, self._send(follower.remote))
            follower.offset = 0
        self.tail = follower.tail
        return state, follower.remote

    def _bring_home(self, pod: Pod, remote: Remote, state: JobState) -> Outcome:
        """
        Step 7: fetch, verify, and end the pod whether that worked or not.
        """
        self.progress("7/7 fetching", 0, 0)
        try:
            report_failure(self.plan, remote, state, self.tail)
            fetched = fetch(self.plan, remote, self.volume, self.progress)
        finally:
            self.fleet.end(pod.id, keep=not pod.ours)
        return Outcome(pod.id, running=False, files=fetched.files, dollars=self._dollars(pod))

    def _alive(self, pod_id: str) -> bool:
        pod = self.fleet.api.pod(pod_id)
        return pod is not None and pod.status in {"PROVISIONING", "STARTING", "RUNNING"}

    def _seconds_left(self, pod: Pod) -> float:
        limit = self.plan.order.max_hours * 3600
        return min(limit, (pod.deadline or self.fleet.api.now() + limit) - self.fleet.api.now())

    def _dollars(self, pod: Pod) -> float:
        since = pod.created.timestamp() if pod.created else self.fleet.api.now()
        return pod.cost * max(0.0, self.fleet.api.now() - since) / 3600

    def _known_sums(self, folder: Path) -> Path:
        return self.plan.settings.folder / "sums" / f"{folder.resolve().name}.json"

    @contextmanager
    def _one_start_at_a_time(self) -> Iterator[None]:
        """
        Let a second call on this machine wait until the first one's training runs, and then find it.
        """
        folder = self.plan.settings.folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(folder / f"{self.plan.run}.lock")
        try:
            with lock.acquire(timeout=0):
                yield
            return
        except Timeout:
            self.progress("another kidspeech starts this run; waiting for it", 0, 0)
        timing = self.fleet.timing
        try:
            with lock.acquire(timeout=timing.ready + timing.setup):
                yield
        except Timeout:
            msg = f"another kidspeech is starting the run {self.plan.run} and does not get done; end it first"
            raise BusyError(msg) from None
