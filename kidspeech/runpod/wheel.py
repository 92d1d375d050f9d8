"""
This very kidspeech as a wheel, made from the files Python imported: no build tools, no network, and nothing in it that
is not part of the package, so no .runpod.env either.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from kidspeech import __version__

PACKAGES = ("kidspeech", "kidspeech.cli", "kidspeech.recipes")
"""The folders, by the name they import under; cli/ and recipes/ lie elsewhere in a checkout."""
NOT_SENT = frozenset({".pyc", ".pyo", ".tmp", ".env", ".pem", ".key"})
FROM_IMAGE = re.compile(r"^(torch|torchvision|torchaudio|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)\b", re.IGNORECASE)
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same files give the same bytes, so that nothing is sent twice


@dataclass(frozen=True)
class Bundle:
    """
    What a pod installs.
    """

    name: str
    wheel: bytes
    constraints: str

    @property
    def fingerprint(self) -> str:
        """
        A name for exactly this content.
        """
        return hashlib.sha256(self.wheel + self.constraints.encode()).hexdigest()[:16]

    def text(self) -> str:
        """
        Return the wheel in base64, for a pipe of text.
        """
        return base64.b64encode(self.wheel).decode()


def bundle() -> Bundle:
    """
    Pack the running kidspeech, and the constraints of its checkout where there is one.
    """
    return Bundle(f"kidspeech-{__version__}-py3-none-any.whl", _pack(), _constraints())


def _pack() -> bytes:
    info = f"kidspeech-{__version__}.dist-info"
    files = dict(sorted(_package_files()))
    files[f"{info}/METADATA"] = str(metadata.metadata("kidspeech")).encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: kidspeech\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nkidspeech = kidspeech.cli.main:main\n"
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    return _zip(files)


def _package_files() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        root = Path(import_module(package).__path__[0])
        for path in root.rglob("*"):
            inside = path.relative_to(root)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
            if path.is_file() and not path.is_symlink() and not hidden and path.suffix not in NOT_SENT:
                yield f"{package.replace('.', '/')}/{inside.as_posix()}", path.read_bytes()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _constraints() -> str:
    """
    Return constraints.txt of the checkout without torch and its CUDA: those are the image's, 3 GB that are there already.
    """
    file = Path(import_module("kidspeech").__path__[0]).parent / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return "".join(f"{line}\n" for line in lines if not FROM_IMAGE.match(line.strip()) and not line.startswith("--"))
