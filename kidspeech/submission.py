"""
From a checkpoint to submission.zip, and a run of that zip as the contest's container does it.

::

    main.py                        kidspeech/submission_main.py
    submission.json                minutes, overrides
    checkpoint/                    weights, configuration, tokenizer, kidspeech.json
    kidspeech/                     the modules main.py imports, found by following its imports: no second preprocessing path
    kidspeech-VERSION.dist-info/   so that the package knows its version without being installed

The container has Python 3.11, transformers 4.57.6, torch 2.9, numpy 1.26, soundfile, soxr, pydantic and PyYAML among much
else (github.com/drivendataorg/childrens-speech-recognition-runtime, uv.lock of February 2026); the zip needs no more.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import kidspeech
from kidspeech.checkpoint import recipe_of
from kidspeech.config import override
from kidspeech.errors import CheckpointError, SubmissionError, writing
from kidspeech.manifest import TEXT_FIELDS, read_jsonl
from kidspeech.models.whisper_vocabulary import for_4_and_5

PACKAGE, VERSION = Path(kidspeech.__file__).parent, kidspeech.__version__
WEIGHTS = (".safetensors", ".bin")
CARRIED = (*WEIGHTS, ".json", ".txt")  # of a checkpoint folder; not its model card
UNSHARE = ("unshare", "--map-root-user", "--net")  # a network of its own, with nothing in it
# Where unshare is missing or forbidden, as in many containers, the same from within Python
OFFLINE = """
import socket, sys, runpy
def refused(*_, **__): raise OSError("no network in the contest's container")
socket.socket.connect = socket.socket.connect_ex = refused
socket.getaddrinfo = refused
sys.argv = [sys.argv[1]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
KEPT = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")  # of the environment
LOG_LINES, LOG_WIDTH = 500, 300  # where the contest cuts


@dataclass(frozen=True)
class Packed:
    """
    A written submission.

    Attributes:
        path: of the zip.
        size: in bytes.
        modules: of kidspeech that it carries, as paths in the zip.
    """

    path: Path
    size: int
    modules: list[str]


@dataclass(frozen=True)
class Checked:
    """
    What came of running a submission.

    Attributes:
        seconds: start-up included.
        lines: of submission.jsonl.
        empty: how many of them have no text.
        log: what it printed.
        texts: by utterance id.
    """

    seconds: float
    lines: int
    empty: int
    log: str
    texts: dict[str, str]


def pack(checkpoint: Path, out: Path, *, overrides: Sequence[str] = (), minutes: float = 110.0) -> Packed:
    """
    Write the zip.

    Args:
        checkpoint: best/ of a run, or any Whisper folder.
        out: the zip.
        overrides: settings of the sections data and decode, as for `kidspeech predict`.
        minutes: no batch is begun later than this after the start; the contest ends a run at 120.

    Raises:
        CheckpointError, RecipeError: the checkpoint or a setting can't be used.
        StorageError: the zip can't be written.
    """
    files = _carried(checkpoint)
    override(recipe_of(str(checkpoint))[0], overrides)
    settings = {"minutes": minutes, "overrides": list(overrides)}
    modules = sorted(needed("kidspeech.submission_main") - {"kidspeech/submission_main.py"})
    aside = out.with_name(f"{out.name}.tmp")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(PACKAGE / "submission_main.py", "main.py")
            archive.writestr("submission.json", json.dumps(settings))
            archive.writestr(f"kidspeech-{VERSION}.dist-info/METADATA", f"Name: kidspeech\nVersion: {VERSION}\n")
            for name in modules:
                archive.write(PACKAGE.parent / name, name)
            _add_checkpoint(archive, files)
        aside.replace(out)
    return Packed(out, out.stat().st_size, modules)


def needed(module: str) -> set[str]:
    """
    Return the files, as "kidspeech/…", of *module* and of all it imports from kidspeech, at any depth.
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        path = _file(waiting.pop())
        if path is None or (name := path.relative_to(PACKAGE.parent).as_posix()) in found:
            continue
        found.add(name)
        waiting += _imports(path)
    return found


def check(archive: Path, data: Path, *, python: Path = Path(sys.executable), timeout: float = 7200.0) -> Checked:
    """
    Unpack *archive* and run it as the container does: a fresh process, no network, no installed kidspeech.

    Args:
        archive: the zip.
        data: folder with utterance_metadata.jsonl, submission_format.jsonl and audio/.
        python: interpreter; one of a virtual environment with the container's packages says most.
        timeout: seconds.

    Raises:
        SubmissionError: no main.py at the root, an exit code other than 0, too long a log, or lines that are not those of the
            submission format.
    """
    with tempfile.TemporaryDirectory(prefix="kidspeech-submission-") as folder:
        place = Path(folder)
        _unpack(archive, place / "src")
        (place / "submission").mkdir()
        (place / "data").symlink_to(data.resolve(), target_is_directory=True)
        start = time.monotonic()
        log = _run(place, python, timeout)
        seconds = time.monotonic() - start
        texts = _answers(place / "submission" / "submission.jsonl", data / "submission_format.jsonl")
    long = [line for line in log.splitlines() if len(line) > LOG_WIDTH]
    if long or log.count("\n") > LOG_LINES:
        msg = f"its log has {log.count(chr(10))} lines, {len(long)} of them over {LOG_WIDTH} characters; the contest cuts it"
        raise SubmissionError(msg)
    return Checked(seconds, len(texts), sum(not text for text in texts.values()), log, texts)


def _carried(checkpoint: Path) -> list[Path]:
    if not checkpoint.is_dir():
        msg = f"{checkpoint} is no folder; a submission has no network, so give a checkpoint that lies on this machine"
        raise CheckpointError(msg)
    return sorted(path for path in checkpoint.iterdir() if path.suffix in CARRIED)


def _add_checkpoint(archive: zipfile.ZipFile, files: Sequence[Path]) -> None:
    for path in files:
        if path.name == "tokenizer_config.json":
            archive.writestr(f"checkpoint/{path.name}", for_4_and_5(path.read_text(encoding="utf-8")))
        else:
            stored = zipfile.ZIP_STORED if path.suffix in WEIGHTS else zipfile.ZIP_DEFLATED  # weights don't shrink
            archive.write(path, f"checkpoint/{path.name}", stored)


def _file(module: str) -> Path | None:
    base = PACKAGE.parent / module.replace(".", "/")
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _imports(path: Path) -> Iterator[str]:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    yield from (".".join(parts[:depth]) for depth in range(1, len(parts)))  # importing a module runs its packages first
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "kidspeech":
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _unpack(archive: Path, place: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            if "main.py" not in opened.namelist():
                msg = f"{archive} has no main.py at its root; write it with kidspeech submit"
                raise SubmissionError(msg)
            opened.extractall(place)
    except (OSError, zipfile.BadZipFile) as error:
        msg = f"can't read {archive}: {error}; write it with kidspeech submit"
        raise SubmissionError(msg) from error


def _run(place: Path, python: Path, timeout: float) -> str:
    # -I: neither PYTHONPATH nor the user's packages; where kidspeech is installed, the zip's own stands before it
    command = [str(python), "-I", *([] if _unshares() else ["-c", OFFLINE]), "src/main.py"]
    environment = {key: os.environ[key] for key in KEPT if key in os.environ} | {"HOME": str(place)}
    try:
        done = subprocess.run(
            [*(UNSHARE if _unshares() else ()), *command],
            cwd=place,
            env=environment,
            text=True,
            timeout=timeout,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except subprocess.TimeoutExpired as error:
        msg = f"it ran for more than {timeout:g} s"
        raise SubmissionError(msg) from error
    if done.returncode:
        msg = f"main.py ended with exit code {done.returncode}: {done.stdout[-2000:]}"
        raise SubmissionError(msg)
    return done.stdout


@cache
def _unshares() -> bool:
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _answers(path: Path, expected: Path) -> dict[str, str]:
    problems: list[str] = []
    wanted = [str(record["utterance_id"]) for _, record in read_jsonl(expected, problems)]
    records = [record for _, record in read_jsonl(path, problems)]
    if problems or [record.get("utterance_id") for record in records] != wanted:
        msg = f"its submission.jsonl does not have the lines of {expected}, in that order"
        raise SubmissionError(msg)
    return {record["utterance_id"]: next(record[field] for field in TEXT_FIELDS if field in record) for record in records}
