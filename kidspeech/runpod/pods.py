"""
Pods from their creation to their end: found, created, resumed, waited for, ended. Whatever is created here is either
returned or ended, also when the user or an error cuts in between.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from kidspeech.errors import ApiError, BusyError, RemoteError, SettingsError, SshError
from kidspeech.progress import Progress, silent
from kidspeech.runpod.api import RunPod, is_full
from kidspeech.runpod.catalog import Candidate, cuda_of, no_capacity
from kidspeech.runpod.clock import Clock, Timing, polls
from kidspeech.runpod.interrupts import uninterrupted
from kidspeech.runpod.models import ALIVE, DEADLINE, END, PREFIX, RUN, NetworkVolume, Pod
from kidspeech.runpod.plan import Plan
from kidspeech.runpod.settings import Settings, write_pod_id
from kidspeech.runpod.ssh import Shell, target

log = logging.getLogger(__name__)

DISK_GB = 60
DEADLINE_SLACK = 300  # seconds by which the pod's own deadline follows the controller's
SLOW_START = 60.0  # seconds for which a pod that was told to start may still be called EXITED
START = """bash -c 'bash -c "$KIDSPEECH_WATCHDOG" & exec /start.sh'"""
"""The container's command: the watchdog, then what the image would have run, which starts sshd."""


@dataclass(frozen=True)
class Fleet:
    """
    The account's pods, seen from one project.
    """

    settings: Settings
    api: RunPod
    clock: Clock = field(default_factory=Clock)
    timing: Timing = field(default_factory=Timing)

    def of_run(self, run: str) -> list[Pod]:
        """
        Return the pods of a run that cost money, oldest first.
        """
        alive = [pod for pod in self.api.pods() if pod.ours and pod.env.get(RUN) == run and pod.status in ALIVE]
        return sorted(filter(self._here, alive), key=lambda pod: (pod.created.timestamp() if pod.created else 0.0, pod.id))

    def ours(self) -> list[Pod]:
        """
        Return the pods that kidspeech made on this project's volumes, and the one of POD_ID whoever made it.
        """
        return [pod for pod in self.api.pods() if (pod.ours and self._here(pod)) or pod.id == self.settings.pod_id]

    def volumes(self) -> list[NetworkVolume]:
        """
        Return this project's volumes.
        """
        return [self.api.volume(volume_id) for volume_id in self.settings.volume_ids]

    def volume(self, volume_id: str | None = None) -> NetworkVolume:
        """
        Return the volume of that id, or the first one.

        Raises:
            SettingsError: it is none of this project's.
        """
        if volume_id is not None and volume_id not in self.settings.volume_ids:
            msg = f"--volume {volume_id}: NETWORK_VOLUME_ID lists {', '.join(self.settings.volume_ids)}"
            raise SettingsError(msg)
        return self.api.volume(volume_id or self.settings.volume_ids[0])

    def obtain(self, plan: Plan, progress: Progress = silent) -> Pod:
        """
        Resume POD_ID where that works, else create a pod from the first candidate that has one.

        Raises:
            CapacityError, ApiError: there is none; nothing was started.
        """
        return self._resume(plan, progress) or self._create(plan, progress)

    def ready(self, pod: Pod, progress: Progress = silent) -> Shell:
        """
        Wait until a real command runs over ssh: a port that is mapped and a banner prove nothing.

        Raises:
            RemoteError: it ended, or did not come up within timing.ready; its host's last words are in the message.
        """
        last = "it was not running yet"
        for gone in polls(self.clock, self.timing.ready, self.timing.poll):
            now = self.api.pod(pod.id)  # each time anew: after a start the first answer may still have the old port
            starting = now is not None and now.status == "EXITED" and gone < SLOW_START
            if now is None or not (now.status in ALIVE or starting):
                msg = f"pod {pod.id} ended before it was ready: {now.status if now else 'it is gone'}{self._words(pod)}"
                raise RemoteError(msg)
            progress("waiting for the pod", gone, self.timing.ready, now.status.lower())
            if now.door is None:
                continue
            try:
                shell = Shell(target(self.settings, now, now.door))
                shell.run(["true"], timeout=30, tries=1)
            except SshError as error:
                last = str(error)
            else:
                shell.share()
                return shell
        msg = f"pod {pod.id} was not ready after {self.timing.ready / 60:.0f} minutes: {last}{self._words(pod)}"
        raise RemoteError(msg)

    def end(self, pod_id: str, *, keep: bool = False) -> None:
        """
        End the billing of a pod and see that it has ended: deleted, or with *keep* stopped.

        Raises:
            RemoteError: it can't be seen to have ended; the message says so and where to look.
        """
        for _ in polls(self.clock, self.timing.gone, self.timing.poll):
            pod = self.api.pod(pod_id)
            if pod is None or pod.status == "TERMINATED" or (keep and pod.status == "EXITED"):
                if self.settings.pod_id in {pod_id, ""} and not keep:
                    write_pod_id(self.settings.path, "")
                return
            try:
                self.api.act(pod_id, "stop" if keep else "terminate")
            except ApiError as error:
                if error.status in {401, 403}:
                    raise
                log.warning("ending pod %s: %s", pod_id, error)
        msg = f"pod {pod_id} MAY STILL COST MONEY: RunPod does not say that it ended. See console.runpod.io, or `runpod reap`"
        raise RemoteError(msg)

    @contextmanager
    def or_end(self, pod: Pod) -> Iterator[None]:
        """
        End *pod* if the block does not come to its end, for whatever reason.
        """
        try:
            yield
        except BaseException:  # Ctrl-C too: until a training runs, nothing on the pod is worth a cent
            self._end_quietly(pod.id, keep=not pod.ours)
            raise

    @contextmanager
    def or_end_unless_running(self, pod: Pod) -> Iterator[None]:
        """
        End a pod that was found rather than made, but only one that never came to run: another one may be training.
        """
        try:
            yield
        except RemoteError:
            now = self.api.pod(pod.id)
            if now is not None and now.status in {"PROVISIONING", "STARTING"}:
                self._end_quietly(pod.id, keep=False)
            raise

    def _resume(self, plan: Plan, progress: Progress) -> Pod | None:
        pod = self.api.pod(self.settings.pod_id) if self.settings.pod_id else None
        if pod is None or not pod.holds(plan.volume.id):
            return None
        if pod.status in ALIVE:
            return None if pod.ours and pod.env.get(RUN) != plan.run else pod
        progress("resuming the pod", 0, 0, pod.id)
        try:
            self.api.set_env(pod.id, {**pod.env, **self.environment(plan, "terminate" if pod.ours else "stop")})
            self.api.act(pod.id, "start")
        except ApiError as error:
            if error.status in {401, 402, 403, 429} and not is_full(error):
                raise
            log.warning("pod %s can't be resumed (%s); making a new one with the same specification", pod.id, error)
            progress("resuming the pod", 0, 0, "its host is full; making a new one")
            if pod.ours:
                self._end_quietly(pod.id, keep=False)
            return None
        return self.api.pod(pod.id)  # with its new deadline

    def _create(self, plan: Plan, progress: Progress) -> Pod:
        refusals = []
        for candidate in plan.candidates:
            progress("asking for a pod", 0, 0, f"{candidate.gpu} in {candidate.data_center}")
            try:
                return self._settle(plan, self._create_one(plan, candidate))
            except ApiError as error:
                if error.status not in {400, 403} and not is_full(error):
                    raise
                refusals += [f"{candidate.gpu}: {error}"]
        raise no_capacity(refusals, plan.volume)

    def _create_one(self, plan: Plan, candidate: Candidate) -> Pod:
        body = self.specification(plan, candidate)
        try:
            pod = self.api.create(body)
        except BaseException as error:
            if not isinstance(error, ApiError) or error.status is None or error.status >= 500:
                self._end_named(body["name"])  # interrupted or unanswered: there may be a pod nobody knows of
            raise
        with self.or_end(pod):
            write_pod_id(self.settings.path, pod.id)
        return pod

    def _settle(self, plan: Plan, pod: Pod) -> Pod:
        """
        Yield to an older pod of the same run, where two controllers created one at the same time.
        """
        with self.or_end(pod):
            first = next(iter(self.of_run(plan.run)), pod)
        if first.id == pod.id:
            return pod
        log.warning("another controller was faster with pod %s; ending ours", first.id)
        self.end(pod.id)
        if not first.holds(plan.volume.id):
            msg = f"another controller has just begun this run on another volume (pod {first.id}); the same command joins it"
            raise BusyError(msg)
        write_pod_id(self.settings.path, first.id)
        return first

    def specification(self, plan: Plan, candidate: Candidate) -> dict[str, Any]:
        """
        Return the body of a create. It holds no secret: the API shows a pod's environment to whoever may read pods.
        """
        cuda = cuda_of(self.settings.image)
        return {
            "name": f"{PREFIX}{plan.run}-{secrets.token_hex(4)}",
            "image": self.settings.image,
            "args": START,
            "cloud": "SECURE",  # volumes exist nowhere else
            "gpu": {"id": candidate.gpu, "count": 1, **({"minCudaVersion": cuda} if cuda else {})},
            "dataCenterIds": [candidate.data_center],
            "disk": DISK_GB,
            "mounts": {"network": [{"volumeId": plan.volume.id, "path": self.settings.mount}]},
            "ports": ["22/tcp"],
            "env": {**self.environment(plan, "terminate"), "KIDSPEECH_WATCHDOG": script("watchdog.sh")},
        }

    def environment(self, plan: Plan, end: str) -> dict[str, str]:
        """
        Return what a pod's watchdog needs to know; *end* is what it does to the pod.
        """
        seconds = int(plan.order.max_hours * 3600) + DEADLINE_SLACK
        return {
            "PUBLIC_KEY": self.settings.public_key,
            RUN: plan.run,
            END: end,
            DEADLINE: str(int(self.api.now()) + seconds),
            "KIDSPEECH_SECONDS": str(seconds),
            "KIDSPEECH_IDLE": str(self.timing.idle),
            "KIDSPEECH_WATCH": str(self.timing.watch),
            "KIDSPEECH_API": self.settings.api_url,
            "KIDSPEECH_NOTES": plan.places.path(f"{plan.job_key}/pods.log"),
        }

    def _here(self, pod: Pod) -> bool:
        return any(pod.holds(volume_id) for volume_id in self.settings.volume_ids)

    def _words(self, pod: Pod) -> str:
        lines = self.api.log_tail(pod.id, 5)
        return f"\n  its host says: {' | '.join(lines)}" if lines else ""

    def _end_named(self, name: str) -> None:
        try:
            if (pod := self.api.named(name)) is not None:
                self._end_quietly(pod.id, keep=False)
        except RemoteError as error:
            log.error("pod %s MAY EXIST and cost money: %s", name, error)

    def _end_quietly(self, pod_id: str, *, keep: bool) -> None:
        """
        End a pod while another error is on its way; its watchdog does it in any case.
        """
        try:
            with uninterrupted():
                self.end(pod_id, keep=keep)
        except (RemoteError, KeyboardInterrupt) as error:
            log.error("%s", error)


def script(name: str) -> str:
    """
    Return one of the shell scripts beside this file.
    """
    return resources.files("kidspeech.runpod").joinpath(name).read_text(encoding="utf-8")
