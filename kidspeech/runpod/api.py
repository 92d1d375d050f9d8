"""
RunPod's REST API, version 2: the dozen calls that kidspeech makes, typed, retried where that is safe.

There is no idempotency key. What must not happen twice (a create) is looked up by its unique name before it is repeated.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from kidspeech import __version__
from kidspeech.errors import ApiError
from kidspeech.runpod.clock import Clock
from kidspeech.runpod.models import GpuType, NetworkVolume, Pod

log = logging.getLogger(__name__)
T = TypeVar("T", bound=BaseModel)
Action = Literal["start", "stop", "restart", "terminate"]

ATTEMPTS = 5
LONGEST_PAUSE = 65.0  # seconds; the longest window whose end is worth waiting for is the minute's
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
LOG_SILENCE = 3.0  # seconds without a line after which a log that never ends counts as read
HINTS = {
    401: "the key in RUNPOD_API_KEY is not accepted",
    402: "the account has no credit left; nothing was started",
    403: "the key lacks the right for this: it needs pods, network volumes and the catalog",
    410: "this address of the API is retired: kidspeech speaks version 2, see RUNPOD_API_URL",
}


class RunPod:
    """
    A session with the API; a context manager, because it holds connections.
    """

    def __init__(
        self, key: SecretStr, url: str, *, transport: httpx.BaseTransport | None = None, clock: Clock | None = None
    ) -> None:
        self._clock = clock or Clock()
        self._skew = 0.0  # the server's clock minus ours
        self._http = httpx.Client(
            base_url=url,
            # an own name: the service's front answers 1010 to Python's default one
            headers={"Authorization": f"Bearer {key.get_secret_value()}", "User-Agent": f"kidspeech/{__version__}"},
            timeout=TIMEOUT,
            transport=transport,
            follow_redirects=False,  # a redirect would carry the key elsewhere
        )

    def __enter__(self) -> RunPod:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def now(self) -> float:
        """
        Return the service's time in seconds since 1970, so that a wrong clock here moves no deadline there.
        """
        return time.time() + self._skew

    def pods(self) -> list[Pod]:
        """
        Return every pod of the account, following the pages that newer versions of the API cut the list into.
        """
        found: list[Pod] = []
        cursor: str | None = None
        while True:
            page = self._request("GET", "/pods", params={"cursor": cursor} if cursor else None)
            found += [_parse(Pod, pod) for pod in _items(page, "pods")]
            following = page.get("pagination") or {}
            known, cursor = cursor, following.get("nextCursor")
            if not following.get("hasNextPage") or not cursor or cursor == known:
                return found

    def pod(self, pod_id: str) -> Pod | None:
        """
        Return one pod, or None where it is gone.
        """
        try:
            return _parse(Pod, self._request("GET", f"/pods/{pod_id}"))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def create(self, body: Mapping[str, Any]) -> Pod:
        """
        Create a pod, once: after an answer that leaves it open whether there is one, look for its name.

        Raises:
            ApiError: refused (400 is also "no capacity"), or unanswered in all attempts with no such pod to be seen.
        """
        for pause in _pauses():
            try:
                return _parse(Pod, self._once("POST", "/pods", json=dict(body)))
            except ApiError as error:
                if pause is None or not _may_pass(error):
                    raise
                log.info("creating %s: %s; looking for it before trying again", body["name"], error)
                self._wait(error, pause)
            if (pod := self.named(str(body["name"]))) is not None:
                return pod
        raise AssertionError  # the last pause is None

    def named(self, name: str) -> Pod | None:
        """
        Return the pod of that name.
        """
        return next((pod for pod in self.pods() if pod.name == name), None)

    def act(self, pod_id: str, action: Action) -> None:
        """
        Start, stop, restart or terminate a pod. One that is gone counts as terminated.
        """
        try:
            self._request("POST", f"/pods/{pod_id}/action", json={"action": action})
        except ApiError as error:
            if not (action == "terminate" and error.status == 404):
                raise

    def set_env(self, pod_id: str, env: Mapping[str, str]) -> None:
        """
        Replace the environment of a stopped pod; a running one would be reset by it.
        """
        self._request("PATCH", f"/pods/{pod_id}", json={"env": dict(env)})

    def volume(self, volume_id: str) -> NetworkVolume:
        """
        Return a network volume.
        """
        return _parse(NetworkVolume, self._request("GET", f"/network-volumes/{volume_id}"))

    def gpus(self) -> list[GpuType]:
        """
        Return the catalog of GPUs for pods in the Secure Cloud (the one with volumes), with prices and stock.
        """
        query = {"include": "AVAILABILITY", "product": "POD", "count": "1", "cloud": "SECURE"}
        return [_parse(GpuType, gpu) for gpu in _items(self._request("GET", "/catalog/gpus", params=query), "gpus")]

    def log_tail(self, pod_id: str, lines: int = 20) -> list[str]:
        """
        Return the last lines of the host's own log of a pod: image pulls, crash loops. Nothing where there is none.
        """
        found: list[str] = []
        query = {"source": "system", "tail": str(lines)}
        quiet = httpx.Timeout(30.0, read=LOG_SILENCE)
        try:
            with self._http.stream("GET", f"/pods/{pod_id}/logs", params=query, timeout=quiet) as answer:
                for line in answer.iter_lines():
                    found += [_log_line(line)] if line.startswith("data:") and answer.is_success else []
                    if len(found) >= lines:
                        break
        except httpx.HTTPError as error:
            log.debug("log of pod %s: %s", pod_id, type(error).__name__)
        return found

    def _request(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        for pause in _pauses():
            try:
                return self._once(method, path, **arguments)
            except ApiError as error:
                if pause is None or not _may_pass(error):
                    raise
                log.info("%s %s: %s; trying again", method, path, error)
                self._wait(error, pause)
        raise AssertionError  # the last pause is None

    def _once(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            msg = f"no answer from RunPod to {method} {path}: {type(error).__name__}: {error}"
            raise ApiError(msg) from None  # the cause holds the request, and that holds the key
        self._learn_time(answer)
        if answer.is_success:
            return _body(answer)
        raise _refusal(answer, f"{method} {path}")

    def _wait(self, error: ApiError, pause: float) -> None:
        asked = getattr(error, "retry_after", None)
        self._clock.sleep(min(asked if asked is not None else pause, LONGEST_PAUSE))

    def _learn_time(self, answer: httpx.Response) -> None:
        try:
            self._skew = parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time()
        except (KeyError, ValueError):
            log.debug("an answer without a date")


class RetryableError(ApiError):
    """
    A refusal for now, with the seconds the service asked for.
    """

    def __init__(self, message: str, status: int, retry_after: float | None) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


def is_full(error: ApiError) -> bool:
    """
    Tell whether a refusal means that there is no machine: the API has no code for it, only these words.
    """
    text = str(error).lower()
    return any(words in text for words in ("no longer any instances", "not enough free gpus", "no instances", "capacity"))


def _pauses() -> list[float | None]:
    return [*(2.0**n for n in range(ATTEMPTS - 1)), None]


def _may_pass(error: ApiError) -> bool:
    """
    Tell whether the same request may succeed later. A full host answered 500 in version 1; asking again does not help.
    """
    return error.status is None or (isinstance(error, RetryableError) and not is_full(error))


def _refusal(answer: httpx.Response, what: str) -> ApiError:
    status = answer.status_code
    detail, after = _detail(answer), answer.headers.get("Retry-After", "")
    hint = f" ({HINTS[status]})" if status in HINTS else ""
    message = f"RunPod refused {what}: {status} {detail}{hint}"
    if status == 429 or status >= 500:
        return RetryableError(message, status, float(after) if after.isascii() and after.isdigit() else None)
    return ApiError(message, status)


def _detail(answer: httpx.Response) -> str:
    try:
        body = answer.json()
        words = [body.get("detail") or body.get("title") or "", *(body.get("errors") or [])]
    except (ValueError, AttributeError):
        words = [answer.reason_phrase]
    return "".join(c for c in "; ".join(map(str, words))[:600] if c.isprintable())


def _body(answer: httpx.Response) -> dict[str, Any]:
    if not answer.content:
        return {}
    try:
        body = answer.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        return body
    msg = f"RunPod answered {answer.status_code} with something that is not a JSON object"
    raise ApiError(msg)


def _items(page: Mapping[str, Any], key: str) -> list[Any]:
    items = page.get(key)
    if not isinstance(items, list):
        msg = f"RunPod's answer has no list of {key}"
        raise ApiError(msg)
    return items


def _parse(kind: type[T], body: Any) -> T:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        msg = f"RunPod's answer is not the {kind.__name__} its documents describe: {places}"
        raise ApiError(msg) from None


def _log_line(line: str) -> str:
    try:
        entry = json.loads(line.removeprefix("data:"))
        text = str(entry.get("line", ""))
    except (ValueError, AttributeError):
        text = ""
    return "".join(c for c in text if c.isprintable())
