"""
Several corpora: each from its own manifests and folders, no id and no child in two of them unless the recipe says so.
"""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import yaml

from kidspeech import reading
from kidspeech.cli.main import main
from kidspeech.config import Data, Recipe, load_recipe
from kidspeech.dataset import build_dataset
from kidspeech.errors import CheckpointError, DatasetError, ManifestError, RecipeError
from kidspeech.sources import gather, sources_of
from kidspeech.train import train

from corpora import Corpus, Record, make_corpus


@pytest.fixture(name="both")
def _both(corpus: Corpus, tmp_path: Path) -> dict[str, Corpus]:
    """
    Two corpora with the same file names, other sounds, other ids, and other children.
    """

    def renamed(records: list[Record]) -> list[Record]:
        return [
            record | {"utterance_id": f"T{record['utterance_id']}", "child_id": f"T{record['child_id']}"} for record in records
        ]

    second = make_corpus(tmp_path / "second", children=6, clips=2)
    return {"drivendata": corpus, "talkbank": second.rewrite(renamed)}


def recipe_of(recipe_file: Path, both: dict[str, Corpus], *overrides: str) -> Recipe:
    """
    Return the tiny recipe with *both* corpora in it, written to a file as a user would.
    """
    tree = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    tree["data"]["corpora"] = {
        name: {"manifests": [str(each.manifest)], "audio_dirs": [str(folder) for folder in each.audio_dirs]}
        for name, each in both.items()
    }
    recipe_file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_recipe(recipe_file, overrides)


def kidspeech(*arguments: object) -> None:
    """
    Run a command that must succeed.
    """
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert left.value.code == 0


def same_children(both: dict[str, Corpus]) -> dict[str, Corpus]:
    """
    Return *both* with the child ids of the first in the second too.
    """
    shared = both["talkbank"].rewrite(
        lambda records: [record | {"child_id": str(record["child_id"])[1:]} for record in records], "shared.jsonl"
    )
    return both | {"talkbank": shared}


@pytest.mark.unit
def test_a_recipe_with_corpora_takes_no_flags_and_one_without_needs_them() -> None:
    """
    Two ways to say where the data are would leave open which counts.
    """
    named = Data.model_validate({"corpora": {"a": {"manifests": ["x/a.jsonl", "y/b.jsonl"]}}})

    assert sources_of(named, [], [])[0].audio_dirs == [Path("x"), Path("y")]
    with pytest.raises(RecipeError, match=r"names its corpora \(a\)"):
        sources_of(named, [Path("m.jsonl")], [])
    with pytest.raises(RecipeError, match="no manifest"):
        sources_of(Data(), [], [])


@pytest.mark.unit
def test_an_id_in_two_corpora_is_refused_with_both_places(corpus: Corpus, recipe_file: Path) -> None:
    """
    Both files and lines are named: one of them must change.
    """
    again = corpus.rewrite(lambda records: records[3:4])
    data = recipe_of(recipe_file, {"a": corpus, "b": again}).data

    with pytest.raises(ManifestError, match=r"U_003: .* 2 times \(.*manifest.jsonl, line 4; .*changed.jsonl, line 1\)"):
        gather(sources_of(data, [], []), "merge")


@pytest.mark.unit
def test_audio_of_one_name_is_found_in_its_own_corpus(both: dict[str, Corpus], recipe_file: Path) -> None:
    """
    U_000.flac lies in both; each utterance gets the one of its corpus.
    """
    _, clips, _ = gather(sources_of(recipe_of(recipe_file, both).data, [], []), "refuse")

    assert clips["U_000"].path == str(both["drivendata"].audio_dirs[0] / "U_000.flac")
    assert clips["TU_000"].path == str(both["talkbank"].audio_dirs[0] / "U_000.flac")


@pytest.mark.unit
def test_children_of_one_id_are_refused_merged_or_separated(both: dict[str, Corpus], recipe_file: Path) -> None:
    """
    Two corpora that both have a C_0: nobody but the user knows whether it is one child.
    """
    sources = sources_of(recipe_of(recipe_file, same_children(both)).data, [], [])

    with pytest.raises(ManifestError, match=r"6 children .* C_0 \(drivendata and talkbank\).*shared_children=merge"):
        gather(sources, "refuse")
    merged, separated = gather(sources, "merge")[0], gather(sources, "separate")[0]
    assert len({utterance.child_id for utterance in merged}) == 9
    assert len({utterance.child_id for utterance in separated}) == 15
    assert {"C_8", "drivendata/C_0", "talkbank/C_0"} <= {utterance.child_id for utterance in separated}


@pytest.mark.integration
def test_merged_children_stay_on_one_side_and_every_clip_says_its_corpus(
    both: dict[str, Corpus], recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Through the command line, without flags: the corpus is in the dataset, in what inspect tells, and in the manifest lines.
    """
    recipe_of(recipe_file, same_children(both))
    kidspeech("prepare", recipe_file, "--out", tmp_path / "DATA", "data.shared_children=merge", "data.split_tolerance=0.4")
    sides = datasets.load_from_disk(str(tmp_path / "DATA"))
    capsys.readouterr()
    kidspeech("inspect", tmp_path / "DATA", "--json")
    told = json.loads(capsys.readouterr().out)["corpora"]

    assert not set(sides["train"]["child_id"]) & set(sides["validation"]["child_id"])
    corpus_of = {row["utterance_id"]: row["corpus"] for side in sides.values() for row in side}
    assert len(corpus_of) == 27 + 12
    assert all(corpus == ("talkbank" if name.startswith("T") else "drivendata") for name, corpus in corpus_of.items())
    assert {name: group["total"]["utterances"] for name, group in told.items()} == {"drivendata": 27, "talkbank": 12}
    lines = (tmp_path / "DATA" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["corpus"] for line in lines} <= set(both)


@pytest.mark.integration
def test_another_weight_touches_nothing(
    both: dict[str, Corpus], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Weights are for the drawing of clips in training: the dataset stays the same to the byte, and no audio is opened.
    """
    out = tmp_path / "DATA"
    build_dataset(recipe_of(recipe_file, both), [], [], out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(reading, "read_audio", lambda *_, **__: pytest.fail("audio was opened"))
    build_dataset(load_recipe(recipe_file, ["data.corpora.talkbank.weight=0.5"]), [], [], out)

    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.integration
def test_training_draws_a_corpus_as_often_as_its_weight_says(
    both: dict[str, Corpus], recipe_file: Path, tmp_path: Path
) -> None:
    """
    With weight 9 an epoch has nine times a corpus' clips; a run goes on only with the weights it began with.
    """
    data, out = tmp_path / "DATA", tmp_path / "RUN"
    build_dataset(recipe_of(recipe_file, both), [], [], data)
    trained = datasets.load_from_disk(str(data))["train"]["corpus"][:]
    clips = trained.count("drivendata") + 9 * trained.count("talkbank")
    result = train(load_recipe(recipe_file, ["train.epochs=1", "data.corpora.talkbank.weight=9"]), data, out)

    assert abs(result.steps - clips / 6) <= 1
    with pytest.raises(CheckpointError, match=r"weights of data.corpora were {'talkbank': 9.0}, are {}"):
        train(load_recipe(recipe_file, ["train.epochs=1"]), data, out)
    with pytest.raises(
        DatasetError, match=r"data.corpora.myst.weight: the dataset has no such corpus .* drivendata, talkbank"
    ):
        train(load_recipe(recipe_file, ["data.corpora={myst: {manifests: [x], weight: 2}}"]), data, tmp_path / "OTHER")
