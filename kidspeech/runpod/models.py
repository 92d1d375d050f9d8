"""
What RunPod's API answers, as far as kidspeech reads it. Unknown keys are ignored: the service adds some every month.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

PREFIX = "kidspeech-"
"""Every pod that kidspeech makes is called so; `reap` looks for nothing else."""
RUN, DEADLINE, END = "KIDSPEECH_RUN", "KIDSPEECH_DEADLINE", "KIDSPEECH_END"
ALIVE = ("PROVISIONING", "STARTING", "RUNNING")
HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:-]{0,252}$")]
UserName = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
PortNumber = Annotated[int, Field(ge=1, le=65535)]


def _one_line(text: str) -> str:
    return "".join(c for c in text if c.isprintable())


PlainText = Annotated[str, AfterValidator(_one_line)]


class Answer(BaseModel):
    """
    A part of an answer; text that is shown to people has lost its control characters.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class Door(Answer):
    """
    Where sshd listens, checked: these words become arguments of ssh.
    """

    host: HostName
    port: PortNumber
    username: UserName = "root"


class Ssh(Answer):
    """
    The ways in; only the direct one carries rsync and tunnels.
    """

    direct: Door | None = None


class RuntimePort(Answer):
    """
    One port of a running pod.
    """

    private: int = 0
    public: PortNumber | None = None
    type: str = ""
    ip: HostName | None = None


class Runtime(Answer):
    """
    What a running pod reports.
    """

    uptime: int = 0
    ports: tuple[RuntimePort, ...] = ()


class NetworkMount(Answer):
    """
    A volume in a pod.
    """

    volume_id: str = Field(alias="volumeId")
    path: str = ""


class Mounts(Answer):
    """
    The storage of a pod.
    """

    network: tuple[NetworkMount, ...] = ()


class GpuOfPod(Answer):
    """
    The GPUs of a pod.
    """

    id: PlainText
    count: int = 1


class Pod(Answer):
    """
    A pod as the API shows it.
    """

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
    name: PlainText
    status: PlainText
    image: PlainText = ""
    env: dict[str, str] = {}
    gpu: GpuOfPod | None = None
    cloud: str = "SECURE"
    data_center: PlainText | None = Field(default=None, alias="dataCenterId")
    cost: float = 0.0
    mounts: Mounts = Mounts()
    runtime: Runtime | None = None
    ssh: Ssh | None = None
    created: datetime | None = Field(default=None, alias="createdAt")
    started: datetime | None = Field(default=None, alias="startedAt")

    @property
    def door(self) -> Door | None:
        """
        Where ssh goes, or None while there is nothing to go to.
        """
        if self.status != "RUNNING":
            return None
        if self.ssh is not None and self.ssh.direct is not None:
            return self.ssh.direct
        ports = self.runtime.ports if self.runtime else ()
        found = (Door(host=port.ip, port=port.public) for port in ports if port.private == 22 and port.ip and port.public)
        return next(found, None)

    @property
    def ours(self) -> bool:
        """
        Whether kidspeech made it, and may therefore delete it.
        """
        return self.name.startswith(PREFIX)

    @property
    def deadline(self) -> int | None:
        """
        When its watchdog ends it, in seconds since 1970; None where it has none.
        """
        text = self.env.get(DEADLINE, "")
        return int(text) if text.isascii() and text.isdigit() else None

    def holds(self, volume_id: str) -> bool:
        """
        Tell whether the pod has that volume.
        """
        return any(mount.volume_id == volume_id for mount in self.mounts.network)


class NetworkVolume(Answer):
    """
    A network volume; its size in GB.
    """

    id: str
    name: PlainText
    size: int
    data_center: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+$")] = Field(alias="dataCenter")
    type: PlainText = "STANDARD"


class Price(Answer):
    """
    Dollars an hour for one GPU.
    """

    secure: float = 0.0


class Stock(Answer):
    """
    How many are left in one data centre: NONE, LOW, MEDIUM or HIGH.
    """

    id: str
    availability: PlainText = "NONE"


class GpuType(Answer):
    """
    A kind of GPU from the catalog; its memory in GB.
    """

    id: PlainText
    name: PlainText
    memory: int = 0
    price: Price = Price()
    availability: PlainText = "NONE"
    data_centers: tuple[Stock, ...] = Field(default=(), alias="dataCenters")

    def stock(self, data_center: str) -> str:
        """
        Return the availability in *data_center*: NONE where the catalog does not say.
        """
        found = (stock.availability for stock in self.data_centers if stock.id.upper() == data_center.upper())
        return next(found, "NONE")
