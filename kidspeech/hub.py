"""
A checkpoint on the Hugging Face Hub, with a card that says what it is worth, on whom, and what it was made from.

One commit holds all of it, or nothing is changed. The ids of the children it was trained on stay here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from kidspeech.checkpoint import BestInfo, read_best
from kidspeech.errors import CheckpointError, HubError, InputError
from kidspeech.models.whisper_vocabulary import for_4_and_5

CARRIED = (".safetensors", ".json", ".txt")


def push(
    checkpoint: Path, name: str, *, scores: Path | None = None, statement: str | None = None, public: bool = False
) -> str:
    """
    Upload a checkpoint and its card as one commit, and return the address.

    Args:
        checkpoint: best/ of a run.
        name: "user/name" on the Hub; made, private, where it is not there.
        scores: what `kidspeech score --json` wrote, for a table with intervals; else the validation of the training.
        statement: on the data: whose voices, under which terms, with whose consent.
        public: make a new repository public.

    Raises:
        CheckpointError: no best/ of a run.
        InputError: *scores* are none.
        HubError: the Hub refused, or can't be reached; nothing is changed.
    """
    info = read_best(checkpoint)
    if info is None:
        msg = f"{checkpoint} has no kidspeech.json: give best/ of a run, whose card can say how it was made"
        raise CheckpointError(msg)
    text = card(info, name, _rows(info, scores), statement)
    operations = [_add(path.name, _content(path, info)) for path in sorted(checkpoint.iterdir()) if path.suffix in CARRIED]
    operations.append(_add("README.md", text.encode()))
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.create_commit(name, operations, commit_message=f"WER {info.wer:.4f} on held-out children, step {info.step}")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        msg = f"the Hub did not take {name}: {reason}; nothing was changed. Log in with `hf auth login`, or check the name"
        raise HubError(msg) from error
    return str(address)


def card(info: BestInfo, name: str, rows: Sequence[Mapping[str, Any]], statement: str | None) -> str:
    """
    Return the model card.

    Args:
        info: of the checkpoint.
        name: on the Hub.
        rows: of the table: name, wer, and what is known of interval, clips, children.
        statement: on the data.
    """
    base = info.recipe["model"]["pretrained"]
    shown = base if base and not Path(base).is_absolute() else None  # a path says nothing to anyone else
    head = ["language: en", "library_name: transformers", "pipeline_tag: automatic-speech-recognition"]
    head += ["tags: [whisper, children, kidspeech]", *([f"base_model: {shown}"] if shown else [])]
    lines = ["| age | WER | 95% interval over children | clips | children |", "|---|---:|---:|---:|---:|"]
    lines += [_line(row) for row in rows]
    said = statement or (
        f"Trained on {len(info.train_children)} children; none of them is among those it was scored on. Whose voices they "
        "are, and under which terms and with whose consent they were recorded, its author has not stated."
    )
    parts = {
        "What it is worth": "\n".join(lines) + "\n\nWER as DrivenData's *On Top of Pasketti* contest counts it, on children "
        "the model never heard: 0.2 is two errors in ten words.",
        "Data": said,
        "How to use it": _usage(name),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items())
    intro = f"Whisper{f' ({shown})' if shown else ''} fine-tuned on children's speech with kidspeech, step {info.step}."
    return "\n".join(["---", *head, "---", "", f"# {name.split('/')[-1]}", "", intro, "", body, ""])


def _usage(name: str) -> str:
    return (
        f"```console\nhf download {name} --local-dir best\n"
        "kidspeech predict best manifest.jsonl --audio-dir audio\n```\n\n"
        f'```python\nfrom transformers import pipeline\n\npipeline("automatic-speech-recognition", model="{name}")'
        '("clip.wav")["text"]\n```'
    )


def _rows(info: BestInfo, scores: Path | None) -> list[dict[str, Any]]:
    if scores is None:
        return [{"name": name, "wer": wer} for name, wer in info.groups.items()] + [{"name": "all", "wer": info.wer}]
    try:
        record = json.loads(scores.read_text(encoding="utf-8"))
        return [*record["by"].get("age_bucket", []), record["total"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{scores} is not what kidspeech score --json writes ({error})"
        raise InputError(msg) from error


def _line(row: Mapping[str, Any]) -> str:
    low_high = row.get("interval")
    interval = f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else ""
    wer = "" if row["wer"] is None else f"{row['wer']:.3f}"
    return f"| {row['name']} | {wer} | {interval} | {row.get('clips', '')} | {row.get('children') or ''} |"


def _content(path: Path, info: BestInfo) -> bytes | str:
    if path.name == "kidspeech.json":
        return json.dumps(asdict(replace(info, train_children=[])), indent=2).encode()
    if path.name == "tokenizer_config.json":
        return for_4_and_5(path.read_text(encoding="utf-8")).encode()
    return str(path)


def _add(name: str, content: bytes | str) -> huggingface_hub.CommitOperationAdd:
    return huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
