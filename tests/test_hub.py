"""
Push: one commit with weights and card, and nothing of the children.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from kidspeech.checkpoint import BestInfo, best_folder, read_best
from kidspeech.config import Model, Recipe, as_dict
from kidspeech.errors import CheckpointError, HubError, InputError
from kidspeech.hub import push

pytestmark = pytest.mark.unit
GROUPS = {"5-7": 0.3125, "8-11": 0.2}


class Hub:
    """
    The Hub's side, at the edge: repositories by name, each a list of commits.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.down = False

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        if self.down:
            raise ConnectionError("Max retries exceeded")
        assert exist_ok
        self.private.setdefault(name, private)
        self.repositories.setdefault(name, [])
        return f"https://huggingface.co/{name}"

    def create_commit(self, name: str, operations: list[Any], *, commit_message: str) -> None:
        read = {}
        for operation in operations:
            with operation.as_file() as file:
                read[operation.path_in_repo] = file.read()
        self.repositories[name].append(read)


@pytest.fixture(name="hub")
def _hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


@pytest.fixture(name="best")
def _best(tmp_path: Path) -> Path:
    recipe = as_dict(Recipe(model=Model(pretrained="openai/whisper-small")))
    with best_folder(tmp_path, BestInfo(recipe, 40, 0.25, GROUPS, "abc", ["C_1", "C_2", "C_3"])) as folder:
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "config.json").write_text("{}", encoding="utf-8")
        (folder / "optimizer.bin").write_bytes(b"not to be sent")
    return tmp_path / "best"


def test_one_commit_holds_weights_and_card_and_no_childs_id(best: Path, hub: Hub) -> None:
    """
    The table by age, the data statement, the way to use it; private unless asked.
    """
    address = push(best, "me/kids")
    (commit,) = hub.repositories["me/kids"]
    card = commit["README.md"].decode()

    assert address == "https://huggingface.co/me/kids"
    assert hub.private == {"me/kids": True}
    assert set(commit) == {"README.md", "config.json", "kidspeech.json", "model.safetensors"}
    assert commit["model.safetensors"] == b"weights"
    assert "| 5-7 | 0.312 |" in card
    assert "| all | 0.250 |" in card
    assert "base_model: openai/whisper-small" in card
    assert "Trained on 3 children" in card
    assert 'pipeline("automatic-speech-recognition", model="me/kids")' in card
    assert not any(b"C_2" in content for content in commit.values())
    info = read_best(best)
    assert info is not None
    assert info.train_children == ["C_1", "C_2", "C_3"]
    assert json.loads(commit["kidspeech.json"])["recipe"] == info.recipe


def test_a_score_gives_the_table_its_intervals_and_the_author_the_statement(best: Path, hub: Hub, tmp_path: Path) -> None:
    """
    What score --json wrote goes in as it is.
    """
    row = {"name": "3-4", "wer": 0.5, "interval": [0.4, 0.61], "clips": 120, "children": 9}
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"by": {"age_bucket": [row]}, "total": row | {"name": "all"}}), encoding="utf-8")
    push(best, "me/kids", scores=scores, statement="Recorded in Delft, CC BY 4.0.", public=True)
    card = hub.repositories["me/kids"][0]["README.md"].decode()

    assert "| 3-4 | 0.500 | 0.400 to 0.610 | 120 | 9 |" in card
    assert "Recorded in Delft" in card
    assert "has not stated" not in card
    assert hub.private == {"me/kids": False}


def test_what_can_not_be_pushed_says_why(best: Path, hub: Hub, tmp_path: Path) -> None:
    """
    A folder that is no best/, scores that are none, a Hub that is not there.
    """
    with pytest.raises(CheckpointError, match=r"no kidspeech\.json"):
        push(tmp_path, "me/kids")
    (tmp_path / "s.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="score --json"):
        push(best, "me/kids", scores=tmp_path / "s.json")
    hub.down = True
    with pytest.raises(HubError, match="Max retries exceeded; nothing was changed"):
        push(best, "me/kids")
    assert hub.repositories == {}
