"""
Volumes in several data centres: a pod is made where there is a GPU, and a run stays where its checkpoints are.
"""

from __future__ import annotations

import json

import pytest

from kidspeech.errors import CapacityError, SettingsError
from kidspeech.runpod.catalog import Candidate, rank
from kidspeech.runpod.settings import load_settings

from .conftest import Project
from .fake_api import GPUS, VOLUMES

pytestmark = pytest.mark.integration
HERE, THERE = VOLUMES


@pytest.fixture(name="travelled")
def _travelled(project: Project) -> Project:
    """
    A project with a volume in each of two data centres.
    """
    file = project.folder / ".runpod.env"
    file.write_text(file.read_text().replace(HERE, f"{HERE}, {THERE}"))
    return project


def made(project: Project) -> list[tuple[str, str]]:
    """
    Return volume and data centre of each pod that was asked for.
    """
    asked = [json.loads(raw) for method, path, raw in project.cloud.requests if (method, path) == ("POST", "/v2/pods")]
    return [(body["mounts"]["network"][0]["volumeId"], body["dataCenterIds"][0]) for body in asked]


@pytest.mark.parametrize("known", [True, False], ids=["as the catalog says", "unknown to the catalog"])
def test_a_pod_is_made_in_the_first_center_that_has_a_gpu(known: bool, travelled: Project) -> None:
    """
    Whether the catalog knows of the lack or the create does; the data go to that center's volume.
    """
    cloud = travelled.cloud
    cloud.full_centers, cloud.stock_known = {VOLUMES[HERE]}, known
    assert len(travelled.train().files) == 3
    assert made(travelled)[-1] == (THERE, VOLUMES[THERE])
    assert len(made(travelled)) == (1 if known else 3)  # both types in the first center before the second
    assert (cloud.folder / THERE / "kidspeech/runs/r1/run.json").is_file()
    assert cloud.alive() == []


def test_a_run_goes_on_where_its_checkpoints_are(travelled: Project) -> None:
    """
    Though the other center has GPUs again; only --force-restart leaves it.
    """
    cloud = travelled.cloud
    cloud.full_centers = {VOLUMES[HERE]}
    travelled.train()
    cloud.full_centers = {VOLUMES[THERE]}
    with pytest.raises(CapacityError, match=VOLUMES[THERE]):
        travelled.train(overrides=("train.epochs=2",))
    travelled.train(force_restart=True)
    assert made(travelled)[-1] == (HERE, VOLUMES[HERE])
    assert cloud.alive() == []


def test_the_center_with_the_better_gpu_is_asked_first() -> None:
    """
    The user's order of types decides before his order of volumes, by the catalog's stock.
    """
    both = ["NONE", "HIGH"]
    worse = [Candidate("A", "X", 1.0, stock, wish) for wish, stock in enumerate(both)]
    better = [Candidate("A", "Y", 1.0, stock, wish) for wish, stock in enumerate(reversed(both))]
    assert rank(better) < rank(worse) < rank([Candidate("A", "Z", 1.0, "NONE", 0), Candidate("B", "Z", 1.0, "NONE", 1)])


def test_nowhere_names_every_center(travelled: Project) -> None:
    """
    And nothing was started.
    """
    travelled.cloud.full = set(GPUS)
    with pytest.raises(CapacityError, match=f"(?s){VOLUMES[HERE]}.*{VOLUMES[THERE]}"):
        travelled.train()
    assert travelled.cloud.ledger == []


def test_one_bucket_for_several_volumes_is_refused(travelled: Project) -> None:
    """
    It would be another one's.
    """
    file = travelled.folder / ".runpod.env"
    file.write_text(file.read_text() + f"RUNPOD_S3_BUCKET={HERE}\n")
    with pytest.raises(SettingsError, match="lists several: leave them empty"):
        load_settings(file, {})
