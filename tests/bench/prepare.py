"""
`nox -s bench -- prepare FOLDER`: what preparing costs, the usual recipe and ours side by side.

FOLDER holds a manifest and its audio; its clips are repeated under new ids, as links, to the size asked for. The manifest
has no md5, so that nothing but paths tells clips apart and every one is really read. Each side is a process of its own,
start-up included. Memory is what a process holds for itself (RssAnon, sampled ten times a second), without mapped files.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FEW = 10  # clips of the run that measures the start
KIDSPEECH = (sys.executable, "-c", "from kidspeech.cli.main import main; main()", "prepare", "demo")
SAMPLED = 1000  # clips in the table of stages


@dataclass(frozen=True)
class Run:
    """
    One measured process.
    """

    name: str
    clips: int
    seconds: float
    size: int
    main: int
    worker: int

    def row(self, usual: float) -> list[str]:
        """
        Return its line of the table; *usual* is the other side's clips per second.
        """
        speed, each = self.clips / self.seconds, f"{self.size / self.clips / 1000:,.1f} kB" if self.size else ""
        memory = [f"{kilobytes / 1000:,.0f} MB" if kilobytes else "" for kilobytes in (self.main, self.worker)]
        return [self.name, f"{self.clips:,}", f"{self.seconds:.1f} s", f"{speed:,.0f}", each, *memory, f"{speed / usual:.1f}"]


def main() -> None:
    """
    Run both sides and print the tables.
    """
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.work, prefix="bench-prepare-") as folder:
        work = Path(folder)
        if options.usual_only:
            usual_recipe(Path(options.folder), work / "usual", options.workers)
            return
        runs = [_usual(options, work)]
        small = list(_ours(options, work, options.clips))
        large = list(_ours(options, work, options.large)) if options.large else []
        runs += small + large
        usual = runs[0].clips / runs[0].seconds
        head = ["", "clips", "time", "clips/s", "a clip", "main process", "largest worker", "ratio"]
        _print([head, *(run.row(usual) for run in runs)])
        _print([["one clip, one thread", "ms"], *_stages(Path(options.folder))])
        print("\n".join(_against_targets(runs[0], small, large)))


def _against_targets(usual: Run, small: Sequence[Run], large: Sequence[Run]) -> Iterable[str]:
    _, first, _, again, _ = small
    speed = first.clips / first.seconds
    yield f"{speed / (usual.clips / usual.seconds):.1f} times the clips/s of the usual recipe (target: 10)"
    yield f"1/{usual.size / usual.clips / (first.size / first.clips):.1f} of its bytes a clip (target: 1/15)"
    yield f"nothing changed: {again.seconds:.1f} s for {again.clips:,} clips"
    if large:
        _, first_large, _, again_large, _ = large
        share = first_large.clips / first_large.seconds / speed
        yield f"nothing changed: {again_large.seconds:.1f} s for {again_large.clips:,} clips (target: under 5 s for 100,000)"
        yield f"at {first_large.clips:,} clips {share:.2f} times the clips/s of {first.clips:,} (target: within 10 %)"
        for name, then, now in (("main", first.main, first_large.main), ("largest worker", first.worker, first_large.worker)):
            yield f"memory, {name}: {then / 1000:,.0f} MB, then {now / 1000:,.0f} MB (target: flat)"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", help="folder with a JSONL manifest and its audio")
    parser.add_argument("--clips", type=int, default=10_000, help="of our side")
    parser.add_argument("--usual", type=int, help="of the usual side; as many as --clips where not given")
    parser.add_argument("--large", type=int, default=0, help="of a second, larger run of ours; 0 for none")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--work", help="folder for what is made; removed at the end")
    parser.add_argument("--usual-only", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _usual(options: argparse.Namespace, work: Path) -> Run:
    clips = options.usual or options.clips
    corpus = repeated(Path(options.folder), clips, work / "usual-corpus")
    command = [sys.executable, __file__, str(corpus), "--usual-only", f"--workers={options.workers}", f"--work={work}"]
    seconds, main_memory, worker = _measured(command)
    size = int((work / "usual-size").read_text())
    return Run("usual recipe", clips, seconds, size, main_memory, worker)


def usual_recipe(corpus: Path, out: Path, workers: int) -> None:
    """
    Do what the tutorials do: map over single clips, padded float32 features, save_to_disk.
    """
    import soundfile
    import soxr
    from datasets import Dataset
    from transformers import WhisperFeatureExtractor

    from kidspeech.models.whisper_vocabulary import english_tokenizer

    extractor, tokenizer = WhisperFeatureExtractor(), english_tokenizer()

    def one(record: dict[str, Any]) -> dict[str, Any]:
        samples, rate = soundfile.read(corpus / record["audio_path"], dtype="float32")
        mono = samples if samples.ndim == 1 else samples.mean(axis=1)
        sound = mono if rate == 16_000 else soxr.resample(mono, rate, 16_000)
        features = extractor(sound, sampling_rate=16_000).input_features[0]
        return {"input_features": features, "labels": tokenizer(record["orthographic_text"]).input_ids}

    records = Dataset.from_json(str(corpus / "manifest.jsonl"), cache_dir=str(out.parent / "hf"))
    records.map(one, num_proc=workers, remove_columns=records.column_names).save_to_disk(str(out))
    (out.parents[1] / "usual-size").write_text(str(_size(out)))


def _ours(options: argparse.Namespace, work: Path, clips: int) -> Iterable[Run]:
    corpus, place = repeated(Path(options.folder), clips, work / f"corpus-{clips}"), work / f"ours-{clips}"
    data, cache = place / "DATA", place / "cache"
    shared = [f"--cache-dir={cache}", f"data.workers={options.workers}", "data.split_tolerance=0.2"]

    def run(name: str, manifest: Path, out: Path, counted: int, *more: str) -> Run:
        asked = [f"--manifest={manifest}", f"--audio-dir={corpus / 'audio'}", f"--out={out}"]
        seconds, main_memory, worker = _measured([*KIDSPEECH, *asked, *shared, *more])
        return Run(name, counted, seconds, _size(out), main_memory, worker)

    few, fewer = corpus / "few.jsonl", corpus / "fewer.jsonl"
    lines = (corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    few.write_text("".join(lines[:: len(lines) // FEW][:FEW]), encoding="utf-8")  # of several children
    fewer.write_text("".join(lines[:-1000]), encoding="utf-8")
    yield run("kidspeech, its start", few, place / "FEW", FEW, "data.split_tolerance=1", f"--cache-dir={place / 'few'}")
    yield run("kidspeech, all but 1,000", fewer, data, clips - 1000)
    yield run("… and 1,000 new clips", corpus / "manifest.jsonl", data, 1000)
    yield run("… nothing changed", corpus / "manifest.jsonl", data, clips)
    yield run("… another seed", corpus / "manifest.jsonl", place / "OTHER", clips, "data.seed=1")
    shutil.rmtree(place)


def repeated(folder: Path, clips: int, out: Path) -> Path:
    """
    Make a corpus of *clips* links to the audio of *folder*, whose children are repeated with it.
    """
    records = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    audio = {path.name: path.resolve() for path in folder.rglob("*.flac")}
    (out / "audio").mkdir(parents=True)
    with (out / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for number in range(clips):
            turn, place = divmod(number, len(records))
            record = {key: value for key, value in records[place].items() if key not in ("md5_hash", "filesize_bytes")}
            name = f"{record['utterance_id']}_{turn}"
            (out / "audio" / f"{name}.flac").symlink_to(audio[Path(record["audio_path"]).name])
            record |= {"utterance_id": name, "audio_path": f"audio/{name}.flac", "child_id": f"{record['child_id']}_{turn}"}
            manifest.write(json.dumps(record) + "\n")
    return out


def _measured(command: Sequence[str]) -> tuple[float, int, int]:
    peaks: dict[int, int] = {}
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        while process.poll() is None:
            for pid in [process.pid, *_children(process.pid)]:
                peaks[pid] = max(peaks.get(pid, 0), _private(pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{log.read()[-2000:]}")
    return seconds, peaks.pop(process.pid, 0), max(peaks.values(), default=0)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _private(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _stages(folder: Path) -> list[list[str]]:
    import soundfile
    import torch

    from kidspeech.clips import Clip
    from kidspeech.config import load_recipe
    from kidspeech.features import read_audio
    from kidspeech.models import create_model
    from kidspeech.reading import compute_row
    from kidspeech.shards import SHARD, write_shard

    torch.set_num_threads(1)
    log_mel = create_model(load_recipe("demo").model).featurizer
    paths = sorted(folder.rglob("*.flac"))[:SAMPLED]

    def decoded(content: bytes) -> Any:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            return file.read(dtype="float32", always_2d=True)

    contents, read = _timed(Path.read_bytes, paths)
    _, md5 = _timed(lambda content: hashlib.md5(content, usedforsecurity=False).digest(), contents)
    _, decode = _timed(decoded, contents)
    audios, measure = _timed(read_audio, contents)
    mels, mel = _timed(lambda audio: log_mel(audio.samples), audios)
    _, convert = _timed(lambda values: torch.from_numpy(values).half().numpy(), mels)
    rows, whole = _timed(lambda clip: compute_row(clip, log_mel), [Clip.of(path) for path in paths])
    with tempfile.TemporaryDirectory() as place:
        shards = [rows[start : start + SHARD] for start in range(0, len(rows), SHARD)]
        _, write = _timed(lambda shard: write_shard(Path(place, "x.arrow"), shard), shards)
    measured = {
        "read the file": read,
        "md5": md5,
        "decode FLAC": decode,
        "mix, measure, resample": max(measure - decode, 0.0),
        "log-mel": mel,
        "float16": convert,
        "all of it": whole,
        "write the shard": write * len(shards) / len(paths),
    }
    return [[name, f"{1000 * seconds:.3f}"] for name, seconds in measured.items()]


def _timed(work: Callable[[Any], Any], items: Sequence[Any]) -> tuple[list[Any], float]:
    # the median: other work on the machine makes single clips slow
    results, times = [], []
    for item in items:
        start = time.perf_counter()
        results.append(work(item))
        times.append(time.perf_counter() - start)
    return results, sorted(times)[len(times) // 2]


def _print(rows: Sequence[Sequence[str]]) -> None:
    for number, row in enumerate(rows):
        print("| " + " | ".join(row) + " |")
        if number == 0:
            print("|---|" + "---:|" * (len(row) - 1))
    print()


if __name__ == "__main__":
    main()
