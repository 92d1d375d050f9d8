"""
Where things lie on the volume: the one list of its folders. A key has no slash before it; with the mount it is a path.
"""

from __future__ import annotations

from dataclasses import dataclass

ROOT = "kidspeech"
"""The only folder of the volume that kidspeech writes to, and the only one it deletes from."""
CODE = f"{ROOT}/code"
CACHE = f"{ROOT}/cache"
MODELS = f"{ROOT}/models"
PROBE = f"{ROOT}/probe"


def data_key(name: str) -> str:
    """
    Return the key of a dataset.
    """
    return f"{ROOT}/data/{name}"


def run_key(run: str) -> str:
    """
    Return the key of a run folder.
    """
    return f"{ROOT}/runs/{run}"


def job_key(run: str) -> str:
    """
    Return the key of the folder beside a run's, with its log, its owners and its end.
    """
    return f"{ROOT}/jobs/{run}"


@dataclass(frozen=True)
class Places:
    """
    The volume as a pod sees it.
    """

    mount: str

    def path(self, key: str) -> str:
        """
        Return the path in a pod of a key on the volume.
        """
        return f"{self.mount}/{key}"

    def run(self, run: str) -> str:
        """
        Return the path of a run folder.
        """
        return self.path(run_key(run))

    def job(self, run: str) -> str:
        """
        Return the path of a run's job folder.
        """
        return self.path(job_key(run))
