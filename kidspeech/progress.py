"""
How the library tells of long work: it calls a function that the command line, a notebook or a test gives it.
"""

from typing import Protocol


class Progress(Protocol):
    """
    A function that is told how far the work has come.
    """

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """
        Args:
            stage: what is being done, in two or three words; a new name is a new bar.
            done: how much of it is finished, in the unit of *total*.
            total: how much there is; 0 where that is not known.
            note: figures to show beside it ("loss 1.23, 410 clips/s").
        """


def silent(stage: str, done: float, total: float, note: str = "") -> None:
    """
    Tell nobody.
    """
