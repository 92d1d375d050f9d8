"""
Everything kidspeech raises on purpose.

::

    KidspeechError
    ├── InputError            what the user gave can't be used as it is; the command line exits with 2
    │   ├── RecipeError       a recipe, an override, an unknown model
    │   ├── ManifestError     a manifest, with all of its problems
    │   ├── AudioError        one audio file; where there are many, it is skipped and listed
    │   ├── SplitError        the children can't be split as asked
    │   ├── DatasetError      a prepared dataset: missing, unfinished, too much skipped, made for something else
    │   ├── CheckpointError   a run or checkpoint folder: missing, unfinished, of another kind
    │   ├── ScoreError        predictions and references that don't belong together
    │   ├── SubmissionError   a submission that is none, or that the contest would not take
    │   └── SettingsError     .runpod.env: missing, incomplete, contradictory
    ├── BusyError             another process is working in this folder
    ├── StorageError          the disk is full or can't be written
    ├── TrainingError         the run can't go on: the loss is not finite, or a process died
    ├── StoppedError          a signal asked the run to stop; a checkpoint of that moment is there
    ├── HubError              the Hugging Face Hub refused, or can't be reached
    └── RemoteError           something between here and the pod; the message says what still costs money
        ├── ApiError          RunPod's API refused or did not answer; carries the HTTP status
        ├── CapacityError     no data centre has the GPUs, or the host of a stopped pod is full
        ├── SshError          a command on the pod failed, or the connection did
        ├── VolumeError       the volume: full, a transfer that does not verify, a listing that can't be trusted
        └── JobError          the pod did its part and the training on it failed

The message is for the person at the keyboard: what is wrong, where (file and line), and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class KidspeechError(Exception):
    """
    The root of the tree above.
    """


class InputError(KidspeechError):
    """
    What the user gave can't be used as it is.
    """


class RecipeError(InputError):
    """
    A recipe, an override or a setting is wrong.
    """


class ManifestError(InputError):
    """
    A manifest can't be read; the message lists every problem with its line.
    """


class AudioError(InputError):
    """
    One audio file can't be used.
    """


class SplitError(InputError):
    """
    The children can't be split as asked.
    """


class DatasetError(InputError):
    """
    A prepared dataset is missing, unfinished, mostly skipped, or made for something else.
    """


class CheckpointError(InputError):
    """
    A run or checkpoint folder is missing, unfinished, or of another kind.
    """


class ScoreError(InputError):
    """
    Predictions and references don't belong together.
    """


class SubmissionError(InputError):
    """
    A submission is none, or the contest would not take it.
    """


class SettingsError(InputError):
    """
    The RunPod settings are missing, incomplete or contradict themselves.
    """


class BusyError(KidspeechError):
    """
    Another process is working in this folder.
    """


class StorageError(KidspeechError):
    """
    The disk is full or can't be written.
    """


class TrainingError(KidspeechError):
    """
    The run can't go on.
    """


class StoppedError(KidspeechError):
    """
    A signal asked the run to stop, and it has saved itself.
    """

    def __init__(self, run: Path, step: int, signal: str | None) -> None:
        by = signal or "a signal to another of its processes"
        super().__init__(f"stopped by {by} at step {step}, saved in {run}; the same command goes on from there")


class HubError(KidspeechError):
    """
    The Hugging Face Hub refused, or can't be reached.
    """


class RemoteError(KidspeechError):
    """
    Something between here and the pod went wrong.
    """


class ApiError(RemoteError):
    """
    RunPod's API refused a request, or did not answer it.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status, or None where no answer came."""


class CapacityError(RemoteError):
    """
    Nobody has the GPUs asked for at the moment.
    """


class SshError(RemoteError):
    """
    A command on the pod failed, or the connection did.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        """The exit code; 255 is the connection's own failure, None is a timeout."""


class VolumeError(RemoteError):
    """
    The volume is full, or what it holds can't be trusted.
    """


class JobError(RemoteError):
    """
    The training on the pod failed.
    """


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """
    Turn the operating system's refusal to write into a StorageError that names the place.

    Raises:
        StorageError: where the block raised an OSError: disk full, no permission, a file in the way.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        msg = f"can't write {path}: {reason}. What was there before is untouched; free some room or choose another place."
        raise StorageError(msg) from error
