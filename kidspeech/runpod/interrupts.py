"""
Ctrl-C and its kin: when they must wait, and what else counts as one.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


def let_go_when_closed() -> None:
    """
    Make of a terminal that is closed, and of a plain kill, what Ctrl-C is: no pod stays behind unwatched.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _let_go)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """
    Hold back Ctrl-C while the block runs: a pod that is half ended still costs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _let_go(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
