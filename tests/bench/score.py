"""
`nox -s bench -- score`: seconds that the intervals of `kidspeech score` take at their worst, every utterance its own child.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from kidspeech.metrics.bootstrap import RESAMPLES, ChildSums, interval, resample


def main() -> None:
    """
    Print the median over some runs, and the aim.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    draw = random.Random(3)
    errors = [draw.randrange(4) for _ in range(options.utterances)]
    sums = ChildSums(errors, [draw.randrange(1, 12) for _ in errors])
    times = [_timed(sums) for _ in range(options.runs)]
    print(f"{RESAMPLES:,} resamples of {options.utterances:,} utterances: {statistics.median(times):.2f} s (aim: 5 s)")


def _timed(sums: ChildSums) -> float:
    started = time.perf_counter()
    interval(resample(sums))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
