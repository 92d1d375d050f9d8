"""
A controller as a process of its own, for tests that kill it: prints each stage and line, then DONE; or stops at a stage.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from kidspeech.runpod.api import RunPod
from kidspeech.runpod.clock import Timing
from kidspeech.runpod.launch import run
from kidspeech.runpod.plan import Order, make_plans
from kidspeech.runpod.settings import load_settings


def main(folder: Path, last: str) -> None:
    timing = Timing(poll=0.2, ready=60, setup=120, gone=30, visible=30, lost=30, watch=1)

    def tell(stage: str, *_: object) -> None:
        print(stage, flush=True)
        if last and stage.startswith(last):
            signal.pause()  # until it is killed

    tell("1/7 checking")
    settings = load_settings(folder / ".runpod.env", {})
    order = Order(str(folder / "tiny.yaml"), folder / "data", folder / "runs" / "r1", max_hours=1.0)
    with RunPod(settings.api_key, settings.api_url) as api:
        plans = make_plans(order, settings, api)
        outcome = run(plans, api, progress=tell, on_line=print, timing=timing)
    print("DONE" if not outcome.running else "LET GO", outcome.pod, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
