"""
RunPod's REST API, version 2, on loopback, with pods that really run and a ledger of when each began and ended to cost.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from . import openapi
from .fake_pod import FakePod, Image, guard, user

KEY = "rpa_SECRETSECRETSECRET"
VOLUME = "vol123abc"
CENTER = "EU-RO-1"
VOLUMES = {VOLUME: CENTER, "vol456def": "US-KS-2"}
GPUS = {"NVIDIA GeForce RTX 4090": 0.69, "NVIDIA L40S": 0.86, "NVIDIA A40": 0.40}
NO_INSTANCES = "There are no longer any instances available with the requested specifications. Please refresh and try again."
HOST_FULL = "There are not enough free GPUs on the host machine to start this pod."
ACTIONS = {"RUNNING": ["stop", "restart", "terminate"], "EXITED": ["start", "terminate"], "ERROR": ["start", "terminate"]}


@dataclass
class Entry:
    """
    A line of the ledger: one pod's life.
    """

    pod: str
    name: str
    began: float
    ended: float | None = None
    by: str = ""


@dataclass
class Fault:
    """
    What goes wrong with requests that match, and how often.
    """

    method: str
    path: str
    status: int = 0
    detail: str = "injected"
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    when: str = "before"
    """"before" the server acts, or "after": it acts, and the client hears nothing of it."""
    hang: float = 0.0
    """Seconds without an answer, instead of a status."""


class FakeRunPod:
    """
    The service: start it with `with`, break it with its attributes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mount = folder / "volume"  # of the pod that was created last: all pods here share one file system
        for volume in VOLUMES:
            (folder / volume).mkdir(parents=True)
        self._put_at_mount(VOLUME)
        self.image = Image(folder / "image")
        self.pods: dict[str, dict[str, Any]] = {}
        self.machines: dict[str, FakePod] = {}
        self.ledger: list[Entry] = []
        self.passed = 0  # seconds that went by without anybody waiting for them
        self.over = 0.0  # when there was nothing left to do for a pod
        self.faults: list[Fault] = []
        self.full: set[str] = set()  # GPU types without capacity
        self.full_centers: set[str] = set()  # data centres without any
        self.stock_known = True  # whether the catalog knows it
        self.requests: list[tuple[str, str, str]] = []
        self.wrong: list[str] = []  # against the OpenAPI document
        self.container: dict[str, str] = {}  # environment of every container: FAKE_NO_SSHD=1, FAKE_LATE=2
        self.boot = 0.1  # seconds from STARTING to RUNNING
        self.stuck = ""  # a status that pods never leave
        self.ignores_args = False  # an image or a service that does not run our command
        self.full_host = False  # refuses to start stopped pods
        self.stale_port = 0  # answers that still show the port of before
        self.clock = 0.0  # seconds by which its Date is off
        self.on_create: Callable[[str], None] = lambda _: None
        self._lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v2"

    def __enter__(self) -> FakeRunPod:
        self._guardian = guard(self.folder)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for machine in self.machines.values():
            machine.kill()
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        self._guardian.wait()

    def alive(self) -> list[str]:
        """
        Return the pods that cost money.
        """
        return [entry.pod for entry in self.ledger if entry.ended is None]

    def now(self) -> float:
        """
        Return the time that the ledger goes by, in seconds since 1970.
        """
        return time.time() + self.passed

    def pass_time(self, seconds: int) -> None:
        """
        Let time go by for the ledger and the pods' uptime.
        """
        self.passed += seconds
        self.image.pass_time(self.passed)

    def in_use(self) -> bool:
        """
        Tell whether something is at work in a pod that costs money.
        """
        return any(self.machines[pod].in_use() for pod in self.alive())

    def answer(self, method: str, path: str, key: str, body: Any) -> tuple[int, Any]:
        """
        Return status and body for a request; problems come as RunPod words them.
        """
        own = re.fullmatch(r"podkey-(\w+)", key)
        if own and not (path == f"/pods/{own[1]}/action" and body == {"action": "terminate"}):
            return _problem(403, "access denied")
        if not own and key != KEY:
            return _problem(401, "missing bearer token")
        with self._lock:
            return self._route(method, path, body, "watchdog" if own else "controller")

    def add_pod(self, name: str, whose: str = "") -> str:
        """
        Bring up a pod that kidspeech did not make here; another project's has another volume.
        """
        volume = "vol456def" if whose == "another project's" else VOLUME
        body = {"name": name, "image": "me/mine", "gpu": {"id": "NVIDIA A40", "count": 1}, "env": {}, "ports": ["22/tcp"]}
        body |= {"mounts": {"network": [{"volumeId": volume, "path": "/workspace"}]}, "dataCenterIds": [VOLUMES[volume]]}
        with self._lock:
            return str(self._create({"cloud": "SECURE", "disk": 20, "args": "", **body})[1]["id"])

    def end(self, pod_id: str, by: str, status: str | None = None) -> None:
        """
        End a pod: delete it, or leave it there with *status*.
        """
        self.machines[pod_id].kill()
        for entry in self.ledger:
            if entry.pod == pod_id and entry.ended is None:
                entry.ended, entry.by = self.now(), by
        if status is None:
            self.pods.pop(pod_id, None)
        else:
            self.pods[pod_id]["status"] = status

    def restart_container(self, pod_id: str) -> None:
        """
        Kill and start a container, as RunPod does when its command exits. Its disk and keys are fresh after it.
        """
        self.machines[pod_id].kill()
        self.pods[pod_id]["startedAt"] = _stamp()
        self._boot(pod_id)

    def _route(self, method: str, path: str, body: Any, by: str) -> tuple[int, Any]:  # noqa: C901  a table of routes
        if (method, path) == ("GET", "/pods"):
            return 200, {"pods": [self._show(pod_id) for pod_id in list(self.pods)]}
        if (method, path) == ("POST", "/pods"):
            return self._create(body)
        volume = path.removeprefix("/network-volumes/")
        if volume in VOLUMES:
            return 200, {"id": volume, "name": "kids", "size": 50, "dataCenter": VOLUMES[volume], "type": "STANDARD"}
        if path == "/catalog/gpus":
            return 200, {"gpus": [self._gpu(name, price) for name, price in GPUS.items()]}
        match = re.fullmatch(r"/pods/(\w+)(/action|/logs)?", path)
        if match is None or match[1] not in self.pods:
            return _problem(404, "resource not found")
        if match[2] == "/action":
            return self._act(match[1], body["action"], by)
        if method == "DELETE":
            return self._act(match[1], "terminate", by)
        if method == "PATCH":
            self.pods[match[1]].update(body)
            self.machines[match[1]].env.update(body.get("env", {}))
        return 200, self._show(match[1])

    def _create(self, body: dict[str, Any]) -> tuple[int, Any]:
        volume = body["mounts"]["network"][0]["volumeId"]
        center = VOLUMES[volume]
        if body["gpu"]["id"] in self.full or center in self.full_centers or body["dataCenterIds"] != [center]:
            return _problem(400, NO_INSTANCES)
        self._put_at_mount(volume)
        pod_id = f"pod{len(self.ledger):03d}{int(time.time() * 1000) % 10**7:07d}"
        own = {"RUNPOD_POD_ID": pod_id, "RUNPOD_API_KEY": f"podkey-{pod_id}"}
        self.pods[pod_id] = {
            **body,
            "id": pod_id,
            "status": "PROVISIONING",
            "registry": None,
            "template": None,
            "cost": GPUS[body["gpu"]["id"]],
            "locked": False,
            "globalNetworking": {"enabled": False},
            "dataCenterId": center,
            "createdAt": _stamp(),
            "startedAt": None,
        }
        self.ledger.append(Entry(pod_id, body["name"], self.now()))
        args = "" if self.ignores_args else body.get("args", "")
        self.machines[pod_id] = FakePod(pod_id, self.folder / "pods" / pod_id, self.image, {**body["env"], **own}, args)
        self._boot(pod_id)
        self.on_create(pod_id)
        return 201, self._show(pod_id)

    def _act(self, pod_id: str, action: str, by: str) -> tuple[int, Any]:
        status = self.pods[pod_id]["status"]
        if action not in ACTIONS.get(status, ["stop", "terminate"]):
            return _problem(409, f"action {action} is not valid for status {status}")
        if action == "terminate":
            self.end(pod_id, by)
            return 204, None
        if action == "stop":
            self.end(pod_id, by, "EXITED")
        elif action == "start":
            if self.full_host:
                return _problem(500, HOST_FULL)
            self.ledger.append(Entry(pod_id, self.pods[pod_id]["name"], self.now()))
            self._boot(pod_id)
        else:
            self.restart_container(pod_id)
        return 200, self._show(pod_id)

    def _put_at_mount(self, volume: str) -> None:
        self.mount.unlink(missing_ok=True)
        self.mount.symlink_to(self.folder / volume)

    def _boot(self, pod_id: str) -> None:
        self.pods[pod_id]["status"] = self.stuck or "STARTING"
        if self.stuck:
            return

        def run() -> None:
            time.sleep(self.boot)
            with self._lock:
                if pod_id in self.pods and self.pods[pod_id]["status"] == "STARTING":
                    self.machines[pod_id].start(**self.container)
                    self.pods[pod_id] |= {"status": "RUNNING", "startedAt": _stamp()}

        threading.Thread(target=run, daemon=True).start()

    def _show(self, pod_id: str) -> dict[str, Any]:
        pod = self.pods[pod_id]
        running = pod["status"] == "RUNNING"
        port = self.machines[pod_id].port
        if running and self.stale_port:
            self.stale_port -= 1
            port = 1  # nobody listens there
        door = {"host": "127.0.0.1", "port": port, "username": user(), "command": "ssh …"}
        ports = [{"private": 22, "public": port, "type": "tcp", "ip": "127.0.0.1"}]
        return {
            **{key: value for key, value in pod.items() if key != "dataCenterIds"},
            "actions": ACTIONS.get(pod["status"], ["stop", "terminate"]),
            "cost": pod["cost"] if pod["status"] not in {"EXITED", "TERMINATED"} else 0.0,
            "runtime": {"uptime": 5, "ports": ports} if running else None,
            "ssh": {"proxy": None, "direct": door if running else None},
            "somethingNew": {"of": "next month"},
        }

    def _gpu(self, name: str, price: float) -> dict[str, Any]:
        def stock(center: str) -> str:
            return "NONE" if self.stock_known and (name in self.full or center in self.full_centers) else "HIGH"

        return {
            "id": name,
            "name": name.removeprefix("NVIDIA ").removeprefix("GeForce "),
            "pool": None,
            "manufacturer": "NVIDIA",
            "memory": 24,
            "secure": True,
            "community": False,
            "price": {"secure": price, "community": 0.0},
            "maxCount": {"secure": 8, "community": 0},
            "availability": stock(CENTER),
            "dataCenters": [{"id": c, "name": c, "availability": stock(c)} for c in VOLUMES.values()],
        }


def _problem(status: int, detail: str) -> tuple[int, Any]:
    return status, {"title": "Problem", "status": status, "detail": detail}


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _handler(cloud: FakeRunPod) -> type[BaseHTTPRequestHandler]:  # noqa: C901  the class closes over the service
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(raw) if raw else None
            path = self.path.partition("?")[0].removeprefix("/v2")
            cloud.requests.append((self.command, self.path, raw.decode()))
            if body is not None:
                cloud.wrong.extend(openapi.problems(f"/v2{path}", self.command, None, body))
            fault = next(
                (f for f in cloud.faults if f.times > 0 and f.method == self.command and re.fullmatch(f.path, path)), None
            )
            if fault is not None:
                fault.times -= 1
            if fault is None or fault.when == "after":
                key = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                status, answer = cloud.answer(self.command, path, key, body)
                if not path.endswith("/logs"):
                    cloud.wrong.extend(openapi.problems(f"/v2{path}", self.command, status, answer))
            if fault is not None and fault.hang:
                time.sleep(fault.hang)
                self.close_connection = True
                return
            if fault is not None:
                status, answer = _problem(fault.status, fault.detail)
            if path.endswith("/logs") and status == 200:
                self._send(
                    200,
                    b'id: 1\ndata: {"ts":"1","source":"system","line":"pulling \\u001b[31mimage"}\n\n',
                    {},
                    "text/event-stream",
                )
                return
            self._send(status, b"" if answer is None else json.dumps(answer).encode(), fault.headers if fault else {})

        def _send(self, status: int, content: bytes, headers: dict[str, str], kind: str = "application/json") -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(int(timestamp or time.time() + cloud.clock))

        def log_message(self, *_: object) -> None:
            pass

        do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

    return Handler
