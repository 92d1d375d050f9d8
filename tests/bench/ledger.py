"""
How long pods were billed, for each way in which a training on a pod goes wrong: the played RunPod's ledger as a table.

Runs the tests that break things and prints what their ledgers say. Time is the service's, in which the four minutes that a
watchdog waits are let go by at once; what else takes time here is faster on a played pod than on a rented one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = ("tests/runpod/test_faults.py", "tests/runpod/test_killed.py", "tests/runpod/test_launch.py")
HEAD = "| what happens | pods | billed for | after the end | ended by |\n| --- | ---: | ---: | ---: | --- |"


def main(arguments: list[str]) -> int:
    """
    Run the tests, with *arguments* for pytest, and print the table.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ledger.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", *TESTS, *arguments]
        code = subprocess.run(
            command, env={**os.environ, "KIDSPEECH_LEDGER": str(file)}, stdout=sys.stderr, check=False
        ).returncode
        print(HEAD)
        for line in sorted(file.read_text(encoding="utf-8").splitlines()):
            print(row(json.loads(line)))
    return code


def row(entry: dict[str, object]) -> str:
    """
    Return a line of the table: of several pods the longest life.
    """
    lives: list[tuple[str, float, float]] = entry["lives"]  # type: ignore[assignment]
    what = str(entry["test"]).removeprefix("test_").replace("ends_well_and_costs_nothing_more", "").strip("[]")
    what = what.replace("_", " ").replace("[", ", at ").rstrip("]")
    billed, after = (f"{max((life[n] for life in lives), default=0):.0f} s" for n in (1, 2))
    by = ", ".join(sorted({life[0] for life in lives})) or "-"
    return f"| {what} | {len(lives)} | {billed} | {after} | {by}{' (one goes on)' * bool(entry['alive'])} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
