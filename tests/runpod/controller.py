"""
A controller as a process of its own, for tests that kill it: prints each stage and line, then DONE.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from kidspeech.runpod.api import RunPod
from kidspeech.runpod.clock import Timing
from kidspeech.runpod.launch import run
from kidspeech.runpod.plan import Order, make_plan
from kidspeech.runpod.settings import load_settings


def main(folder: Path, idle: str) -> None:
    timing = replace(Timing(), poll=0.2, ready=20, setup=60, gone=10, visible=10, lost=10, idle=int(idle), watch=1)
    print("1/7 checking", flush=True)
    settings = load_settings(folder / ".runpod.env", {})
    order = Order(str(folder / "tiny.yaml"), folder / "data", folder / "runs" / "r1", max_hours=1.0)
    with RunPod(settings.api_key, settings.api_url) as api:
        plan = make_plan(order, settings, api)
        outcome = run(plan, api, progress=lambda stage, *_: print(stage, flush=True), on_line=print, timing=timing)
    print("DONE" if not outcome.running else "LET GO", outcome.pod, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
