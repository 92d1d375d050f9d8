"""
The API's client over a transport made of functions: what is repeated, what is not, and what an answer may do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest
from pydantic import SecretStr

from kidspeech.errors import ApiError
from kidspeech.runpod.api import RunPod
from kidspeech.runpod.clock import Clock, polls
from kidspeech.runpod.models import Pod

pytestmark = pytest.mark.unit
KEY = "rpa_VERYSECRET"
POD = {"id": "p1", "name": "kidspeech-r-1", "status": "RUNNING"}


class Server:
    """
    Answers from a list, one after the other, and remembers the requests and pauses.
    """

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.requests = list(answers), list[httpx.Request]()
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self) -> RunPod:
        clock = Clock(sleep=self.pauses.append)
        return RunPod(SecretStr(KEY), "https://api.test/v2", transport=httpx.MockTransport(self), clock=clock)


def answer(status: int, body: object = None, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=body, headers={key.replace("_", "-"): value for key, value in headers.items()})


def test_carries_the_key_in_its_header_alone() -> None:
    """
    An own name too: the service's front refuses Python's.
    """
    server = Server(answer(200, {"pods": []}))
    server.client().pods()
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    assert server.requests[0].headers["User-Agent"].startswith("kidspeech/")
    assert KEY not in str(server.requests[0].url)


def test_waits_as_long_as_it_is_asked_to() -> None:
    """
    Retry-After counts, and an hour of it does not.
    """
    server = Server(answer(429, {}, Retry_After="7"), answer(429, {}, Retry_After="3600"), answer(200, {"pods": []}))
    server.client().pods()
    assert server.pauses == [7.0, 65.0]


def test_gives_up_after_some_attempts() -> None:
    """
    Pauses double; then the service's own words.
    """
    server = Server(*(answer(502, {"title": "Bad Gateway", "status": 502, "detail": "upstream"}) for _ in range(5)))
    with pytest.raises(ApiError, match="502 upstream") as caught:
        server.client().pods()
    assert server.pauses == [1, 2, 4, 8]
    assert caught.value.status == 502


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 410, 413, 422])
def test_repeats_no_refusal(status: int) -> None:
    """
    What is wrong stays wrong.
    """
    server = Server(answer(status, {"title": "x", "status": status, "detail": "why", "errors": ["$: bogus"]}))
    with pytest.raises(ApiError, match=r"why; .*bogus"):
        server.client().volume("v")
    assert server.pauses == []


def test_an_unanswered_create_is_looked_up_before_it_is_repeated() -> None:
    """
    There is no idempotency key: the pod's unique name is one.
    """
    server = Server(httpx.ReadTimeout("late"), answer(200, {"pods": [POD]}))
    assert server.client().create({"name": "kidspeech-r-1"}).id == "p1"
    assert [request.method for request in server.requests] == ["POST", "GET"]


def test_a_create_that_did_not_happen_is_repeated() -> None:
    """
    Nobody of that name: once more.
    """
    server = Server(answer(500, {}), answer(200, {"pods": []}), answer(201, POD))
    assert server.client().create({"name": "kidspeech-r-1"}).id == "p1"
    assert [request.method for request in server.requests] == ["POST", "GET", "POST"]


def test_reads_the_list_page_by_page() -> None:
    """
    Newer versions cut it; a cursor that comes again ends it.
    """
    page = {"pods": [POD], "pagination": {"nextCursor": "c", "hasNextPage": True}}
    server = Server(answer(200, page), answer(200, page))
    assert len(server.client().pods()) == 2


def test_a_pod_that_is_gone_is_none_and_counts_as_terminated() -> None:
    """
    Ending what has ended is no error.
    """
    server = Server(answer(404, {}), answer(404, {}))
    client = server.client()
    assert client.pod("p1") is None
    client.act("p1", "terminate")


@pytest.mark.parametrize("body", [[], "text", {"id": "../x", "name": "n", "status": "RUNNING"}, {"id": "p"}])
def test_an_answer_of_another_shape_is_an_error(body: object) -> None:
    """
    It is data: an id that is a path, a list where an object belongs.
    """
    with pytest.raises(ApiError):
        Server(*(answer(200, body) for _ in range(5))).client().pod("p1")


def test_no_error_shows_the_key() -> None:
    """
    Neither the message nor what it was caused by.
    """
    with pytest.raises(ApiError) as caught:
        Server(*(httpx.ConnectError("refused") for _ in range(5))).client().pods()
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert KEY not in str(caught.value)


def test_follows_no_redirect() -> None:
    """
    The key would go with it.
    """
    server = Server(answer(302, {}, Location="https://evil.test/"))
    with pytest.raises(ApiError):
        server.client().pods()
    assert len(server.requests) == 1


def test_learns_the_services_time() -> None:
    """
    Deadlines on pods are in it.
    """
    client = Server(answer(200, {"pods": []}, Date="Sun, 22 Nov 2026 12:00:00 GMT")).client()
    client.pods()
    assert abs(client.now() - 1795348800) < 5


@pytest.mark.parametrize(
    "door", [{"host": "-oProxyCommand=x", "port": 22}, {"host": "h", "port": 0}, {"host": "h", "port": 22, "username": "a b"}]
)
def test_an_address_that_would_be_an_option_is_refused(door: dict[str, object]) -> None:
    """
    These words become arguments of ssh.
    """
    with pytest.raises(ApiError):
        Server(answer(200, {**POD, "ssh": {"direct": door}})).client().pod("p1")


def test_finds_ssh_in_either_place() -> None:
    """
    ssh.direct where there is one, else the mapped port of 22; nothing while it does not run.
    """
    port = {"private": 22, "public": 40022, "type": "tcp", "ip": "1.2.3.4"}
    pod = Pod.model_validate({**POD, "runtime": {"uptime": 1, "ports": [{"private": 8888, "type": "http"}, port]}})
    assert pod.door is not None
    assert (pod.door.host, pod.door.port, pod.door.username) == ("1.2.3.4", 40022, "root")
    assert pod.model_copy(update={"status": "STARTING"}).door is None


def test_a_wait_is_counted_by_a_clock_that_nobody_sets() -> None:
    """
    A deadline holds though the calendar jumps, and a wait has an end.
    """
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    steps: Callable[[], float] = lambda: now[0]  # noqa: E731  a clock is a function
    assert list(polls(Clock(steps, sleep), 10, 4)) == [0, 4, 8, pytest.approx(10, abs=0.01)][:3]
    assert time.monotonic() > 0
