"""
What the user says about RunPod: .runpod.env and the environment, read once, and the one value written back.

The file wins over the environment, because a shell often carries AWS keys that belong to another account.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr

from kidspeech.errors import SettingsError, writing

FILE = ".runpod.env"
API_URL = "https://api.runpod.io/v2"
IMAGE = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
GPU_TYPE = "NVIDIA GeForce RTX 4090"
PUBLIC_KEY = re.compile(r"(ssh-[a-z0-9]+|ecdsa-sha2-[a-z0-9-]+|sk-[a-z0-9@.-]+) [A-Za-z0-9+/=]+( [^\r\n]*)?")
ASSIGNMENT = re.compile(
    r"""^(?P<head>\s*(?:export\s+)?(?P<key>[A-Za-z_]\w*)\s*=)"""
    r"""(?P<value>[ \t]*"[^"]*"|[ \t]*'[^']*'|.*?)(?P<tail>(?:\s+#.*)?\s*)$"""
)


class S3Settings(BaseModel):
    """
    The keys of the volume's S3 door; what is empty follows from the volume.
    """

    model_config = ConfigDict(frozen=True)

    access_key: SecretStr
    secret_key: SecretStr
    bucket: str = ""
    endpoint: str = ""
    region: str = ""


class Settings(BaseModel):
    """
    Everything kidspeech knows about the user's RunPod account.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    api_key: SecretStr
    volume_ids: tuple[str, ...]
    """Network volumes, each in its data centre; the first is the one that commands mean where none is named."""
    pod_id: str = ""
    ssh_key: Path
    gpu_types: tuple[str, ...]
    s3: S3Settings | None = None
    api_url: str = API_URL
    image: str = IMAGE
    mount: str = "/workspace"
    warnings: tuple[str, ...] = ()
    """What the user should know and that stops nothing; the command line prints it."""

    @property
    def folder(self) -> Path:
        """
        The project's own folder for known_hosts and locks, beside the settings file.
        """
        return self.path.parent / ".runpod"

    @property
    def public_key(self) -> str:
        """
        The line a pod must have in authorized_keys.

        Raises:
            SettingsError: there is no such key, or it is not one line of a public key.
        """
        return _public_key(self.ssh_key)


def load_settings(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """
    Read *path* (default: .runpod.env here) and fill what it leaves empty from the environment.

    Raises:
        SettingsError: with everything that is missing or wrong, at once.
    """
    file = (path or Path(FILE)).absolute()
    values = _environment(os.environ if environ is None else environ)
    values |= {key: value for key, value in _read(file).items() if value}
    problems = _problems(values)
    if problems:
        raise SettingsError("\n  ".join([f"RunPod is not set up ({file}):", *problems, "see .runpod.env.example"]))
    return Settings(
        path=file,
        api_key=SecretStr(values["RUNPOD_API_KEY"]),
        volume_ids=_list(values["NETWORK_VOLUME_ID"]),
        pod_id=values.get("POD_ID", ""),
        ssh_key=Path(values.get("SSH_KEY_PATH", "~/.ssh/id_ed25519")).expanduser(),
        gpu_types=_list(values.get("GPU_TYPE", GPU_TYPE)),
        s3=_s3(values),
        api_url=values.get("RUNPOD_API_URL", API_URL).rstrip("/"),
        image=values.get("RUNPOD_IMAGE", IMAGE),
        mount=values.get("RUNPOD_MOUNT", "/workspace").rstrip("/"),
        warnings=_readable_by_others(file),
    )


def write_pod_id(path: Path, pod_id: str) -> None:
    """
    Set POD_ID in the file at *path*, leaving its comments, order, line ends and mode as they are.

    Raises:
        SettingsError: the id has characters that no id has.
        StorageError: the file can't be written; it is untouched then.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]*", pod_id):
        msg = f"{pod_id!r} is not a pod id"
        raise SettingsError(msg)
    file = path.resolve()
    with writing(file):
        text = file.read_bytes().decode() if file.exists() else ""
        _replace(file, _with_pod_id(text, pod_id))


def parse_env(text: str) -> dict[str, str]:
    """
    Return the assignments of an env file: quotes and `export` as a shell reads them, nothing expanded.
    """
    matches = (ASSIGNMENT.match(line) for line in text.splitlines() if not line.lstrip().startswith("#"))
    return {match["key"]: _unquote(match["value"].strip()) for match in matches if match}


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """
    Return what is set, without AWS keys that are not RunPod's: its own begin with user_, an AWS account's do not.
    """
    ours = environ.get("AWS_ACCESS_KEY_ID", "").startswith("user_")
    return {key: value for key, value in environ.items() if value and (ours or not key.startswith("AWS_"))}


def _read(file: Path) -> dict[str, str]:
    try:
        return parse_env(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        msg = f"can't read {file}: {getattr(error, 'strerror', None) or 'it is not text'}"
        raise SettingsError(msg) from None


def _unquote(value: str) -> str:
    if value[:1] in {"'", '"'} and value[-1:] == value[:1] and len(value) > 1:
        return value[1:-1]
    return value


def _list(value: str) -> tuple[str, ...]:
    """
    Split names at commas, or at quotes: "A", "B" and A, B and "A" "B" all give two.
    """
    parts = value.split(",") if "," in value or '"' not in value else shlex.split(value)
    return tuple(name for part in parts if (name := part.strip().strip("\"'")))


def _problems(values: Mapping[str, str]) -> list[str]:
    missing = [f"{key} is missing" for key in ("RUNPOD_API_KEY", "NETWORK_VOLUME_ID") if not values.get(key)]
    pair = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    if sum(key in values for key in pair) == 1:
        missing += [f"{' and '.join(pair)} belong together; only one is set"]
    wrong = []
    volumes = _list(values.get("NETWORK_VOLUME_ID", "x"))
    if not all(re.fullmatch(r"[A-Za-z0-9_-]+", volume) for volume in volumes):
        wrong += ["NETWORK_VOLUME_ID is not a volume's id (it is not shown here, in case it is a key)"]
    if len(volumes) > 1 and values.keys() & {"RUNPOD_S3_BUCKET", "RUNPOD_S3_REGION"}:
        wrong += ["RUNPOD_S3_BUCKET and RUNPOD_S3_REGION name one volume, NETWORK_VOLUME_ID lists several: leave them empty"]
    if not re.fullmatch(r"[A-Za-z0-9_-]*", values.get("POD_ID", "")):
        wrong += ["POD_ID is not a pod's id"]
    if not re.fullmatch(r"/[A-Za-z0-9._/-]+", values.get("RUNPOD_MOUNT", "/workspace")):
        wrong += ["RUNPOD_MOUNT must be an absolute path of plain characters"]
    return missing + wrong


def _s3(values: Mapping[str, str]) -> S3Settings | None:
    if "AWS_ACCESS_KEY_ID" not in values:
        return None
    return S3Settings(
        access_key=SecretStr(values["AWS_ACCESS_KEY_ID"]),
        secret_key=SecretStr(values["AWS_SECRET_ACCESS_KEY"]),
        bucket=values.get("RUNPOD_S3_BUCKET", ""),
        endpoint=values.get("RUNPOD_S3_ENDPOINT", ""),
        region=values.get("RUNPOD_S3_REGION", ""),
    )


def _readable_by_others(file: Path) -> tuple[str, ...]:
    if os.name == "posix" and file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077:
        return (f"{file} holds keys and others on this machine can read it: chmod 600 {shlex.quote(str(file))}",)
    return ()


def _public_key(private: Path) -> str:
    file = private.with_name(private.name + ".pub")
    try:
        line = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        msg = f"no public key at {file}: make a pair with `ssh-keygen -t ed25519 -f {private}`, or set SSH_KEY_PATH"
        raise SettingsError(msg) from None
    if not private.is_file() or not PUBLIC_KEY.fullmatch(line):
        msg = f"{file} must be one line of a public key with its private key {private.name} beside it"
        raise SettingsError(msg)
    return line


def _with_pod_id(text: str, pod_id: str) -> str:
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        body = line.rstrip("\r\n")
        match = ASSIGNMENT.match(body)
        if match and match["key"] == "POD_ID":
            lines[number] = match["head"] + pod_id + match["tail"] + line[len(body) :]
            return "".join(lines)
    end = "\r\n" if "\r\n" in text else "\n"
    glue = "" if not text or text.endswith("\n") else end
    return f"{text}{glue}POD_ID={pod_id}{end}"


def _replace(file: Path, text: str) -> None:
    """
    Write beside and rename, with the old file's mode from the first byte on: it holds keys.
    """
    mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else 0o600
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(text.encode())
    beside.replace(file)
