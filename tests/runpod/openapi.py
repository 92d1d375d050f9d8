"""
RunPod's published document of its API, where that folder is at hand: every request and answer is checked against it.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[2] / os.environ.get("KIDSPEECH_SHARED", "../shared") / "runpod" / "openapi_v2_20260728.yaml"


@cache
def document() -> dict[str, Any] | None:
    """
    Return the document, or None where it is not there.
    """
    if not DOCUMENT.exists():
        return None
    import yaml

    text: dict[str, Any] = yaml.load(DOCUMENT.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    # Added by RunPod between this document of 2026-07-28 and the one of 2026-08-18, which can't be kept here.
    text["components"]["schemas"]["GpuConfig"]["properties"]["minCudaVersion"] = {"type": "string"}
    return text


def problems(path: str, method: str, status: int | None, body: Any) -> list[str]:
    """
    Return what the document says against a request's body (status None) or an answer's.
    """
    text = document()
    if text is None:
        return []
    operation = _operation(text, path, method)
    if operation is None:
        return [f"{method} {path} is not in the document"]
    schema = _schema(text, operation, status)
    if schema is None:
        return [] if body is None else [f"{method} {path} {status}: no body is documented"]
    validator = _validator(schema)
    return [
        f"{method} {path} {status or 'request'}: {error.json_path} {error.message}" for error in validator.iter_errors(body)
    ]


def _operation(text: dict[str, Any], path: str, method: str) -> dict[str, Any] | None:
    for template, item in text["paths"].items():
        if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", template), path) and method.lower() in item:
            return dict(item[method.lower()])
    return None


def _schema(text: dict[str, Any], operation: dict[str, Any], status: int | None) -> str | None:
    if status is None:
        content = operation.get("requestBody", {}).get("content", {})
    else:
        answer = operation["responses"].get(str(status), operation["responses"].get("default", {}))
        while "$ref" in answer:
            answer = text["components"]["responses"][answer["$ref"].rsplit("/", 1)[1]]
        content = answer.get("content", {})
    kinds = [kind["schema"] for name, kind in content.items() if "json" in name]
    return kinds[0]["$ref"] if kinds else None


@cache
def _validator(reference: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator({"$ref": reference, **(document() or {})})
