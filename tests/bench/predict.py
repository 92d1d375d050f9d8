"""
`nox -s bench -- predict CHECKPOINT FOLDER`: how fast clips become text, three ways side by side in one run.

- pipeline: transformers' pipeline("automatic-speech-recognition"), batch 64, given decoded samples;
- generate: plain generate, batch 64, on padded features that already lie on the device: no audio is read;
- kidspeech: what `kidspeech predict` does, from files to texts, in the checkpoint's context and padded.

All are greedy on the same weights, in half precision on a GPU and float32 on a CPU. Loading weights is not counted; starting
reader processes is. FOLDER holds a manifest and its audio, repeated under new ids to the number of clips asked for; the slow
sides may take fewer (their time is linear). With `--random base` the network is random, of that shape: then every side makes
as many tokens as 8 and one a second would be (whoever works in batches of fixed length: their mean), and WER says nothing.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from kidspeech.checkpoint import recipe_of
from kidspeech.clips import locate
from kidspeech.config import Model, Recipe, override
from kidspeech.features import SAMPLE_RATE, read_audio
from kidspeech.manifest import Utterance, read_manifest
from kidspeech.metrics import score
from kidspeech.models import BaseASRModel, create_model
from kidspeech.models.whisper import FIRST_TOKENS
from kidspeech.transcribe import transcribe

sys.path.insert(0, str(Path(__file__).parent))
from prepare import repeated

TARGETS = "targets: GPU 10 times the pipeline and 3 times generate; two CPU cores 3 times the pipeline"
BATCH = 64
GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.float16) if GPU else ("cpu", torch.float32)
SHAPES = {  # width, layers, heads of openai/whisper-*.en
    "tiny": (384, 4, 6),
    "base": (512, 6, 8),
    "small": (768, 12, 12),
    "medium": (1024, 24, 16),
}
TOKENS_PER_SECOND = 1.0  # of a random network: with FIRST_TOKENS about what children's clips have


@dataclass(frozen=True)
class Side:
    """
    One measured way.
    """

    name: str
    seconds: float
    texts: dict[str, str]
    memory: int

    @property
    def speed(self) -> float:
        """
        Return clips per second.
        """
        return len(self.texts) / self.seconds


def main() -> None:
    """
    Run all sides and print the table.
    """
    options = _options()
    with tempfile.TemporaryDirectory(prefix="bench-predict-") as folder:
        checkpoint = options.checkpoint or str(_random(options.random, Path(folder) / "random"))
        corpus = repeated(Path(options.folder), options.clips, Path(folder) / "corpus")
        utterances = read_manifest(corpus / "manifest.jsonl")
        few = utterances[: options.few or len(utterances)]
        sides = [
            measured("kidspeech, trimmed", lambda: _ours(checkpoint, utterances, corpus, options, "trimmed")),
            measured("kidspeech, padded", lambda: _ours(checkpoint, few, corpus, options, "padded")),
            measured(f"generate, batch {BATCH}, features on the device", lambda: _generate(checkpoint, few, corpus, options)),
            measured(f"pipeline, batch {BATCH}", lambda: _pipeline(checkpoint, few, corpus, options)),
        ]
    _print(sides, utterances, random=bool(options.random))
    _versions(checkpoint if options.checkpoint else f"random {options.random}", utterances)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", help="folder with a JSONL manifest and its audio")
    parser.add_argument("--checkpoint", help="folder or Hub id")
    parser.add_argument("--random", choices=SHAPES, help="random weights of this shape instead")
    parser.add_argument("--clips", type=int, default=10_000, help="of kidspeech, trimmed")
    parser.add_argument("--few", type=int, default=0, help="of the other sides; as many where not given")
    parser.add_argument("settings", nargs="*", help="section.key=value for kidspeech")
    options = parser.parse_args()
    if bool(options.checkpoint) == bool(options.random):
        parser.error("give --checkpoint or --random")
    return options


def _random(shape: str, out: Path) -> Path:
    width, layers, heads = SHAPES[shape]
    sizes = {"d_model": width} | {f"{side}_layers": layers for side in ("encoder", "decoder")}
    sizes |= {f"{side}_attention_heads": heads for side in ("encoder", "decoder")}
    sizes |= {f"{side}_ffn_dim": 4 * width for side in ("encoder", "decoder")}
    torch.manual_seed(0)
    model = create_model(Model(random=sizes))
    model.load()
    network: Any = model.network
    network.generation_config.suppress_tokens = [network.config.eos_token_id]  # or some rows would end by chance
    model.save(out)
    return out


def measured(name: str, work: Callable[[], tuple[float, dict[str, str]]]) -> Side:
    """
    Run one side; *work* returns its own seconds, loading left out, and the texts.
    """
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, texts = work()
    peak = torch.cuda.max_memory_allocated() if GPU else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{name}: {len(texts) / seconds:.1f} clips/s", file=sys.stderr, flush=True)
    return Side(name, seconds, texts, peak)


def _recipe(checkpoint: str, options: argparse.Namespace, context: str) -> Recipe:
    capped = [f"decode.max_tokens_per_second={TOKENS_PER_SECOND}", "decode.max_repeats=null"] if options.random else []
    overrides = [f"decode.context={context}", "data.verify=false", *capped, *options.settings]
    return override(recipe_of(checkpoint)[0], overrides)


def _ours(
    checkpoint: str, utterances: Sequence[Utterance], corpus: Path, options: argparse.Namespace, context: str
) -> tuple[float, dict[str, str]]:
    recipe = _recipe(checkpoint, options, context)
    clips, _ = locate(utterances, [corpus / "audio"])
    wanted = [(utterance, clips[utterance.utterance_id]) for utterance in utterances]
    model = _Loaded.of(create_model(recipe.model))
    start = time.perf_counter()
    texts = {made.utterance_id: made.text for batch in transcribe(wanted, model, recipe) for made in batch}
    return time.perf_counter() - start, texts


class _Loaded:
    """
    Makes a model's load() do nothing the second time.
    """

    @staticmethod
    def of(model: BaseASRModel) -> BaseASRModel:
        model.load()
        model.load = lambda: None  # type: ignore[method-assign]
        return model


def _generate(
    checkpoint: str, utterances: Sequence[Utterance], corpus: Path, options: argparse.Namespace
) -> tuple[float, dict[str, str]]:
    network, processor = _plain(checkpoint)
    batches = []
    for start in range(0, len(utterances), BATCH):
        chosen = utterances[start : start + BATCH]
        samples = [_samples(utterance, corpus) for utterance in chosen]
        features = processor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        batches.append((chosen, features.to(DTYPE)))
    texts: dict[str, str] = {}
    seconds = 0.0
    for chosen, features in batches:
        there = features.to(DEVICE)  # not counted
        _wait()
        begun = time.perf_counter()
        ids = network.generate(there, **_lengths(utterances, options))
        words = processor.batch_decode(ids, skip_special_tokens=True)
        seconds += time.perf_counter() - begun
        texts |= {utterance.utterance_id: text.strip() for utterance, text in zip(chosen, words, strict=True)}
    return seconds, texts


def _pipeline(
    checkpoint: str, utterances: Sequence[Utterance], corpus: Path, options: argparse.Namespace
) -> tuple[float, dict[str, str]]:
    network, processor = _plain(checkpoint)
    pipe = transformers.pipeline(
        "automatic-speech-recognition",
        model=network,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
        device=DEVICE,
        dtype=DTYPE,
    )

    def clips() -> Iterator[dict[str, Any]]:
        for utterance in utterances:
            yield {"raw": _samples(utterance, corpus), "sampling_rate": SAMPLE_RATE}

    begun = time.perf_counter()
    results = list(pipe(clips(), batch_size=BATCH, generate_kwargs=_lengths(utterances, options)))
    seconds = time.perf_counter() - begun
    return seconds, {u.utterance_id: result["text"].strip() for u, result in zip(utterances, results, strict=True)}


def _plain(checkpoint: str) -> tuple[Any, Any]:
    network = transformers.WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=DTYPE).to(DEVICE).eval()
    return network, transformers.WhisperProcessor.from_pretrained(checkpoint)


def _lengths(utterances: Sequence[Utterance], options: argparse.Namespace) -> dict[str, int]:
    if not options.random:
        return {"max_new_tokens": 128}
    tokens = np.mean([FIRST_TOKENS + np.ceil((u.audio_duration_sec or 0) * TOKENS_PER_SECOND) for u in utterances])
    return {"min_new_tokens": round(tokens), "max_new_tokens": round(tokens)}


def _samples(utterance: Utterance, corpus: Path) -> Any:
    return read_audio((corpus / "audio" / Path(utterance.audio_path).name).read_bytes()).samples


def _wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def _print(sides: Sequence[Side], utterances: Sequence[Utterance], *, random: bool) -> None:
    *_, generate, pipeline = sides
    print("|  | clips | time | clips/s | to pipeline | to generate | WER | peak memory |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for side in sides:
        references = [utterance for utterance in utterances if utterance.utterance_id in side.texts]
        wer = "" if random else f"{score(side.texts, references).figure:.4f}"
        ratios = f"{side.speed / pipeline.speed:.1f} | {side.speed / generate.speed:.1f}"
        cells = (
            f"{len(side.texts):,} | {side.seconds:.1f} s | {side.speed:,.1f} | {ratios} | {wer} | {side.memory / 1e9:.1f} GB"
        )
        print(f"| {side.name} | {cells} |")


def _versions(checkpoint: str, utterances: Sequence[Utterance]) -> None:
    where = torch.cuda.get_device_name() if GPU else f"{torch.get_num_threads()} CPU threads"
    mean = np.mean([utterance.audio_duration_sec for utterance in utterances])
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"\n{checkpoint}; clips of {mean:.1f} s; {where}, load {os.getloadavg()[0]:.0f}; {versions}")
    print(TARGETS)


if __name__ == "__main__":
    main()
