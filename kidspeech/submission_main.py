"""
main.py of a submission: what the contest's container runs, with nothing installed but its own packages.

It stands in the zip beside the checkpoint and the modules of kidspeech that it needs, the very ones that `kidspeech predict`
uses. A complete submission.jsonl is there from the first second, empty, and is written anew as texts come in; nothing that
happens later (a clip that is no audio, an error, a clock that runs out, a device that hangs) leaves it incomplete.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

START = time.monotonic()
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from kidspeech.manifest import TEXT_FIELDS, Utterance, read_jsonl, write_jsonl  # noqa: E402

DATA, OUT = Path("data"), Path("submission/submission.jsonl")
GRACE = 120.0  # seconds for the batch in hand, after which what is there counts
LINES = 100  # of log at most: the contest cuts at 500, of 300 characters
log = logging.getLogger("submission")


def main() -> None:
    """
    Read data/, write submission/submission.jsonl; exit code 0 whatever single clips do.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message).250s", stream=sys.stdout)
    log.setLevel(logging.INFO)
    settings = json.loads((HERE / "submission.json").read_text(encoding="utf-8"))
    answers = Answers([record for _, record in read_jsonl(DATA / "submission_format.jsonl", [])])
    until = START + 60 * settings["minutes"]
    _end_at(until + GRACE, answers)
    try:
        transcribe_all(settings, answers, until)
    except Exception as error:  # noqa: BLE001  whatever it is, what was transcribed before it counts
        log.error("stopped by %s: %s", type(error).__name__, str(error).replace("\n", " "))
    answers.write()
    log.info("%d of %d lines transcribed in %.0f s", len(answers.texts), len(answers.lines), time.monotonic() - START)


class Answers:
    """
    The lines of the submission, complete at any time.
    """

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self.lines, self.texts = lines, dict[str, str]()
        self.field = next((field for field in TEXT_FIELDS if lines and field in lines[0]), TEXT_FIELDS[0])
        self._lock = threading.Lock()
        self.write()

    def write(self) -> None:
        """
        Write the file, whole; an utterance without a text has the empty one.
        """
        with self._lock:
            OUT.parent.mkdir(parents=True, exist_ok=True)
            texts = dict(self.texts)
            write_jsonl(OUT, (line | {self.field: texts.get(str(line.get("utterance_id")), "")} for line in self.lines))


def transcribe_all(settings: dict[str, Any], answers: Answers, until: float) -> None:
    """
    Transcribe what the submission format asks for, until the clock says no.
    """
    from transformers.utils.logging import disable_progress_bar

    from kidspeech.checkpoint import recipe_of
    from kidspeech.clips import locate
    from kidspeech.config import override
    from kidspeech.models import create_model
    from kidspeech.transcribe import transcribe

    disable_progress_bar()
    recipe = override(recipe_of(str(HERE / "checkpoint"))[0], settings["overrides"])
    asked = {str(line.get("utterance_id")) for line in answers.lines}
    records = [record for _, record in read_jsonl(DATA / "utterance_metadata.jsonl", [])]
    utterances = [_utterance(record) for record in records if str(record.get("utterance_id")) in asked]
    clips, missing = locate(utterances, [DATA])
    wanted = [(one, clips[one.utterance_id]) for one in utterances if one.utterance_id in clips]
    log.info("%d utterances, %d without audio", len(asked), len(asked) - len(wanted))
    told, problems = time.monotonic(), len(missing)
    for batch in transcribe(wanted, create_model(recipe.model), recipe, until=until):
        answers.texts |= {made.utterance_id: made.text for made in batch}
        problems += sum(made.problem is not None for made in batch)
        if time.monotonic() - told > 60 * settings["minutes"] / LINES:
            told = time.monotonic()
            log.info("%d of %d, %d unusable", len(answers.texts), len(wanted), problems)
            answers.write()
    log.info("%d clips could not be used", problems)


def _utterance(record: dict[str, Any]) -> Utterance:
    # no size, no md5: a file that is not the one the metadata knows is heard all the same
    seconds = record.get("audio_duration_sec")
    name, path = str(record.get("utterance_id")), str(record.get("audio_path"))
    return Utterance(name, path, audio_duration_sec=float(seconds) if isinstance(seconds, int | float) else None)


def _end_at(moment: float, answers: Answers) -> None:
    def end() -> None:
        log.error("out of time with a batch in hand: %d of %d lines", len(answers.texts), len(answers.lines))
        answers.write()
        logging.shutdown()
        os._exit(0)

    watch = threading.Timer(moment - time.monotonic(), end)
    watch.daemon = True
    watch.start()


if __name__ == "__main__":
    main()
