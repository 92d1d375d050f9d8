"""
Training speed against the usual recipe: `nox -s bench -- train --size small medium`, on a machine with a GPU.

The usual recipe is transformers' Seq2SeqTrainer as everybody's notebook has it: every clip padded to 30 s, fp16, gradient
checkpointing, 32 clips at once; its features are computed beforehand and lie in memory. kidspeech trains through its own
`train`, from a dataset that its own `prepare` made of the same clips. Both start from random weights of the size's shape,
each in a process of its own, and speed is the median over steps after the warm-up. Clips are noise with a log-normal spread
of lengths around the mean asked for, and three made-up words a second.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

SIZES = {  # width, layers on either side, heads
    "tiny": (384, 4, 6),
    "base": (512, 6, 8),
    "small": (768, 12, 12),
    "medium": (1024, 24, 16),
}
WORDS = [
    "the",
    "dog",
    "can",
    "see",
    "my",
    "red",
    "ball",
    "and",
    "we",
    "like",
    "to",
    "go",
    "home",
    "with",
    "you",
    "now",
    "because",
]
VOCABULARY = 51864  # of the English-only checkpoints
CLIPS_A_CHILD = 16


def main() -> None:
    """
    Run both sides for each size and print one table.
    """
    options = _options()
    if options.side:
        print(json.dumps(SIDES[options.side](options)))
        return
    rate = _apart(options, "matrix_rate")["flops"]
    rows = []
    for seconds in options.seconds:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            corpus = make_corpus(Path(scratch) / "corpus", seconds, options.clips)
            for size in options.size:
                rows += _compare(options, size, seconds, corpus, rate)
    print(f"\nmatrix rate in bf16: {rate / 1e12:.0f} TFLOP/s")
    print("\n".join(_table(rows)))


def _compare(options: argparse.Namespace, size: str, seconds: float, corpus: Path, rate: float) -> list[dict[str, Any]]:
    common = ["--size", size, "--corpus", str(corpus)]
    runs = [("usual", "usual recipe", options.usual_batch, "false")]
    for batch, compiled in [(batch, compiled) for batch in options.batch for compiled in options.compile]:
        runs.append(("ours", "kidspeech, compiled" if compiled == "true" else "kidspeech", batch, compiled))
    work, rows = useful_work(corpus, size), []
    for side, what, batch, compiled in runs:
        row = _apart(options, side, *common, "--batch", str(batch), "--compile", compiled)
        row |= {"size": size, "seconds": seconds, "what": what, "batch": batch}
        row |= {"useful": row["clips_per_second"] * work / rate}
        rows.append(row | {"ratio": row["clips_per_second"] / (rows or [row])[0]["clips_per_second"]})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _apart(options: argparse.Namespace, side: str, *arguments: str) -> dict[str, Any]:
    steps = ["--steps", str(options.steps), *(["--scratch", str(options.scratch)] if options.scratch else [])]
    command = [sys.executable, __file__, "--side", side, *steps, "--set", *options.set, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"clips_per_second": math.nan, "flops": math.nan, "failed": done.stdout[-300:]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def make_corpus(folder: Path, mean_seconds: float, n_clips: int) -> Path:
    """
    Write clips of noise and their manifest, and return the folder.
    """
    draw = np.random.default_rng(0)
    (folder / "audio").mkdir(parents=True)
    spread = 0.4  # of the logarithm, as of the children's clips this is tuned on
    lines = []
    for number in range(n_clips):
        seconds = float(np.clip(draw.lognormal(math.log(mean_seconds) - spread**2 / 2, spread), 0.5, 29.5))
        name = f"clip{number:05d}"
        soundfile.write(folder / "audio" / f"{name}.flac", 0.1 * draw.standard_normal(int(seconds * 16_000)), 16_000)
        text = " ".join(draw.choice(WORDS, max(round(3 * seconds), 1)))
        child = f"child{number // CLIPS_A_CHILD:03d}"
        line = {"utterance_id": name, "child_id": child, "session_id": child, "age_bucket": "5-7"}
        lines.append(json.dumps(line | {"audio_path": f"audio/{name}.flac", "orthographic_text": text}))
    (folder / "M.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """
    Prepare, then train: the figures that kidspeech itself keeps of a run.
    """
    from kidspeech.config import load_recipe, override
    from kidspeech.dataset import build_dataset
    from kidspeech.train import train

    corpus = Path(options.corpus)
    shape = f"model.random={json.dumps(_sizes(options.size[0]))}"
    fixed = [
        "data.val_ratio=0.1",
        "data.split_tolerance=0.5",
        "train.log_every=5",
        "train.warmup_steps=5",
        "model.pretrained=null",
    ]
    wanted = [f"train.effective_batch={options.batch[0]} clips", f"train.max_steps={options.steps}"]
    recipe = override(load_recipe("whisper-tiny.en", ["model.pretrained=null", *fixed]), [shape, *wanted])
    recipe = override(recipe, [f"train.compile={options.compile[0]}", "train.padded_finish=0", *options.set])
    data, run = corpus / "DATA", corpus / "RUN"
    build_dataset(recipe, [corpus / "M.jsonl"], [corpus / "audio"], data, cache=corpus / "cache", progress=_tell)
    shutil.rmtree(run, ignore_errors=True)
    result = train(recipe, data, run, progress=_tell)
    shutil.rmtree(run, ignore_errors=True)
    return dict(result.speed)


def _tell(stage: str, done: float, total: float, note: str = "") -> None:
    print(f"{time.strftime('%X')} {stage} {done:g}/{total:g} {note}", file=sys.stderr, flush=True)


def usual(options: argparse.Namespace) -> dict[str, Any]:
    """
    Train with Seq2SeqTrainer.
    """
    import torch
    import transformers

    corpus = Path(options.corpus)
    rows = _padded_rows(corpus)
    config = transformers.WhisperConfig(**_sizes(options.size[0]))
    network = transformers.WhisperForConditionalGeneration(config)
    network.config.use_cache = False
    on_gpu = torch.cuda.is_available()
    settings = transformers.Seq2SeqTrainingArguments(
        output_dir=str(corpus / "USUAL"),
        per_device_train_batch_size=options.batch[0],
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        fp16=on_gpu,
        learning_rate=1e-5,
        max_steps=options.steps,
        dataloader_num_workers=4 if on_gpu else 0,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        logging_steps=1000,
        disable_tqdm=True,
    )
    clock = _Clock()
    trainer = transformers.Seq2SeqTrainer(
        model=network, args=settings, train_dataset=rows, data_collator=_pad_labels, callbacks=[clock]
    )
    trainer.train()
    steps = [later - earlier for earlier, later in zip(clock.times[2:], clock.times[3:], strict=False)]
    memory = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0
    return {"clips_per_second": options.batch[0] / statistics.median(steps), "memory_gb": memory}


class _Clock:
    """
    A callback of transformers' that notes when each step is through on the device.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda args, state, control, **_: control
        raise AttributeError(name)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """
        Note the time.
        """
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return control


def _padded_rows(corpus: Path) -> list[dict[str, Any]]:
    import transformers

    from kidspeech.models.whisper_vocabulary import WHOLE, english_tokenizer

    extractor, tokenizer = transformers.WhisperFeatureExtractor(), english_tokenizer(WHOLE)
    rows = []
    for line in (corpus / "M.jsonl").read_text(encoding="utf-8").splitlines()[:256]:
        entry = json.loads(line)
        wave, _ = soundfile.read(corpus / entry["audio_path"])
        features = extractor(wave, sampling_rate=16_000).input_features[0]
        rows.append({"input_features": features, "labels": tokenizer(entry["orthographic_text"]).input_ids})
    return rows * 8


def _pad_labels(rows: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    labels = [torch.tensor(row["labels"][1:]) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    return {"input_features": torch.from_numpy(np.stack([row["input_features"] for row in rows])), "labels": padded}


def matrix_rate(_: argparse.Namespace) -> dict[str, Any]:
    """
    Measure a large product of bf16 matrices with random entries, in operations a second.
    """
    import torch

    side, device = (8192, "cuda") if torch.cuda.is_available() else (512, "cpu")
    one, two = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(20):
        started = time.perf_counter()
        one @ two
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return {"flops": 2 * side**3 / statistics.median(times[5:])}


def useful_work(corpus: Path, size: str) -> float:
    """
    Return the operations that training on a mean clip needs: its own frames and tokens, forward once and backward twice.
    """
    width, layers, _ = SIZES[size]
    entries = [json.loads(line) for line in (corpus / "M.jsonl").read_text(encoding="utf-8").splitlines()]
    total = 0.0
    for entry in entries:
        frames = soundfile.info(corpus / entry["audio_path"]).frames / 160
        tokens = 1.05 * len(entry["orthographic_text"].split()) + 2
        total += _forward_work(frames, tokens, width, layers)
    return 3 * total / len(entries)


def _forward_work(frames: float, tokens: float, width: int, layers: int) -> float:
    positions = frames / 2
    convolutions = 2 * 3 * width * (frames * 80 + positions * width)
    encoder = layers * (24 * positions * width**2 + 4 * positions**2 * width)
    crossing = layers * (4 * positions * width**2 + 4 * tokens * width**2 + 4 * tokens * positions * width)
    decoder = layers * (24 * tokens * width**2 + 2 * tokens**2 * width)
    return convolutions + encoder + crossing + decoder + 2 * tokens * width * VOCABULARY


def _sizes(size: str) -> dict[str, int]:
    width, layers, heads = SIZES[size]
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", layers), ("attention_heads", heads), ("ffn_dim", 4 * width))
    }
    return {"d_model": width} | sides


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| size | clips of | what | step | clips/s | ratio | useful work | waits for data | warm-up | memory |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        waits = f"{row['waiting_for_data']:.1%}" if "waiting_for_data" in row else ""
        warm_up = f"{row['warm_up_seconds']:.0f} s" if "warm_up_seconds" in row else ""
        lines.append(
            f"| {row['size']} | {row['seconds']:g} s | {row['what']} | {row['batch']} | {row['clips_per_second']:,.0f} | "
            f"{row['ratio']:.1f} | {row['useful']:.1%} | {waits} | {warm_up} | {row.get('memory_gb', 0):.0f} GB |"
        )
    return lines


SIDES = {"ours": ours, "usual": usual, "matrix_rate": matrix_rate}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["small", "medium"])
    parser.add_argument("--seconds", nargs="+", type=float, default=[3.5], help="mean length of the clips")
    parser.add_argument("--batch", nargs="+", type=int, default=[96, 512], help="clips in one of kidspeech's steps")
    parser.add_argument("--compile", nargs="+", choices=("true", "false"), default=["false", "true"])
    parser.add_argument("--usual-batch", type=int, default=32, help="clips that the usual recipe takes at once")
    parser.add_argument("--clips", type=int, default=768, help="clips in the corpus")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the corpus and the runs")
    parser.add_argument("--set", nargs="*", default=[], help="further settings of kidspeech's recipe")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
