"""
Time, as every wait here takes it: injected, so that tests don't wait, and monotonic, so that a clock set back or forth
neither ends a wait early nor lets a pod run on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAX_HOURS = 12.0
"""How long a pod with a training may live, if nobody says otherwise."""
UP_HOURS = 2.0
"""And one without."""


@dataclass(frozen=True)
class Clock:
    """
    Where the time comes from, in seconds.
    """

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Timing:
    """
    How long things may take, in seconds. Tests shorten them; the defaults are for the real service.
    """

    poll: float = 5.0
    """Between two looks at the API: its quota is 60 requests a minute."""
    ready: float = 900.0
    """From a pod's creation to its first ssh command; an image of 10 GB takes ten minutes on a cold host."""
    setup: float = 1200.0
    """To install kidspeech on the pod, the first time without a cache."""
    gone: float = 120.0
    """For the API to say 404 after a terminate."""
    visible: float = 180.0
    """For an upload over S3 to show on the pod's mount."""
    lost: float = 300.0
    """How long a pod that runs a job may be out of reach before it is given up."""
    idle: int = 240
    """The pod ends itself after this long without a job or a transfer; with one look every 10 s, under five minutes."""
    watch: int = 10
    """Between two looks of the watchdog in the pod."""


def polls(clock: Clock, limit: float, every: float) -> Iterator[float]:
    """
    Yield the seconds gone by, now and then every *every* seconds, until *limit* is over.
    """
    start = clock.monotonic()
    while (gone := clock.monotonic() - start) <= limit:
        yield gone
        clock.sleep(min(every, max(0.0, limit - gone) + 0.001))
