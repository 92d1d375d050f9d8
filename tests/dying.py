"""
Prepare that ends at an exact moment, in a process of its own; and a featurizer that takes its process with it.

A program imports everything once, and then takes orders, one JSON object a line, and answers each with one. For an order it
forks itself, and the fork prepares and sends itself a signal at a moment. Moments are counted in lines or calls of kidspeech,
not in seconds: a busy machine does not shift them, and they may lie between any two lines.

::

    {"out": FOLDER, "cache": FOLDER, "call": NAME or null, "count": N, "signal": S}
        send S at the N-th call of the function NAME, or at the N-th line; no signal where N is 0
    {}  let the stopped fork of the order before go on

    {"code": C, "lines": L}    its exit code, negative where a signal ended it; the lines it ran, where none did
    {"code": null}             it is stopped

What other processes are to find by its name lies here and not in a test: of the folders of the repository, only this one is
on their path.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kidspeech import arrow_folder, cache, dataset, examples, reading, shards, split, workers
from kidspeech.config import Recipe, load_recipe
from kidspeech.features import LogMel, Waveform
from kidspeech.models import create_model
from kidspeech.processes import spawned

from corpora import Corpus

# Not started as a file: the workers that prepare spawns would run it again, as their own main module
PROGRAM = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from dying import main; main(*sys.argv[1:])"
COUNTED = {module.__file__ for module in (arrow_folder, cache, dataset, examples, reading, shards, split, workers)}
SHARD = 8  # clips, so that a small corpus has many shards
PATIENCE = 600  # seconds: what takes longer hangs


@dataclass(frozen=True)
class Loudness:
    """
    A featurizer double: cheap, and deadly for clips of as many samples as *deadly* names.
    """

    deadly: tuple[int, ...] = ()
    once: str = ""  # a file: with it the clip kills but once
    settings: ClassVar[dict[str, Any]] = {"kind": "double"}
    rows: ClassVar[int] = 1
    max_seconds: ClassVar[float] = 30.0

    def __call__(self, samples: Waveform) -> NDArray[np.float32]:
        if len(samples) in self.deadly and not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.abs(samples[None, ::160])


class Deadly(LogMel):
    """
    What LogMel becomes in a reader: it dies of clips of 0.9 s.
    """

    def __call__(self, samples: Waveform) -> NDArray[np.float32]:
        if round(len(samples) / 16_000, 2) == 0.9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(samples)


def wait_with_a_worker(told: Connection) -> None:
    """
    Start a worker, tell its process id, and wait to be killed.
    """
    with spawned(1) as pool:
        told.send(pool.submit(os.getpid).result())
        told.recv()


@dataclass(frozen=True)
class Dying:
    """
    The program, as a test sees it.
    """

    process: subprocess.Popen[str]

    def prepare(
        self, out: Path, cache: Path, *, call: str | None = None, count: int = 0, number: int = signal.SIGKILL
    ) -> dict[str, Any]:
        """
        Prepare, send *number* at the moment, and return the answer.
        """
        return self._ask({"out": str(out), "cache": str(cache), "call": call, "count": count, "signal": number})

    def go_on(self) -> dict[str, Any]:
        """
        Let the stopped one go on, and return the answer.
        """
        return self._ask({})

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@contextmanager
def dying(recipe: Path, corpus: Corpus) -> Iterator[Dying]:
    """
    Start the program, for one recipe and one corpus.
    """
    command = [sys.executable, "-c", PROGRAM, str(recipe), str(corpus.manifest), *map(str, corpus.audio_dirs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Dying(process)  # then its stdin is closed: it has no more orders


def main(recipe: str, manifest: str, *audio_dirs: str) -> None:
    """
    Take orders until there are no more.
    """
    settings = load_recipe(recipe, ["data.max_skipped=0.3"])
    assert create_model(settings.model).label_settings  # what it imports and reads is there in every fork
    workers.SHARD = SHARD
    fork = 0
    for order in map(json.loads, sys.stdin):
        if not order:
            os.kill(fork, signal.SIGCONT)
        elif not (fork := os.fork()):
            _prepare(settings, manifest, audio_dirs, order)
        fork = _wait(fork)
    if fork:
        os.kill(fork, signal.SIGKILL)


def _wait(fork: int) -> int:
    _, status = os.waitpid(fork, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        _answer(code=None)
        return fork
    if status:
        _answer(code=os.waitstatus_to_exitcode(status))
    return 0


def _prepare(settings: Recipe, manifest: str, audio_dirs: tuple[str, ...], order: dict[str, Any]) -> None:
    signal.alarm(PATIENCE)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # off where pytest was started in the background
    lines = _count(order["call"], order["count"], order["signal"])
    audio = [Path(folder) for folder in audio_dirs]
    dataset.build_dataset(settings, [Path(manifest)], audio, Path(order["out"]), cache=Path(order["cache"]))
    sys.settrace(None)
    _answer(code=0, lines=lines())
    os._exit(0)


def _count(call: str | None, count: int, number: int) -> Callable[[], int]:
    lines = calls = 0

    def look(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines, calls
        if frame.f_code.co_filename not in COUNTED:
            return None
        is_line, is_call = event == "line", event == "call" and frame.f_code.co_name == call
        lines, calls = lines + is_line, calls + is_call
        if (is_call and calls == count) or (call is None and is_line and lines == count):
            os.kill(os.getpid(), number)
        return look

    sys.settrace(look)
    return lambda: lines


def _answer(**values: object) -> None:
    print(json.dumps(values), flush=True)
