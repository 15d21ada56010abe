"""What every engine and the gateway promise: the values they take and give, and the two interfaces.

An engine knows nothing of deployments' wishes. It starts a replica from a `ReplicaSpec`, tells which replicas it has,
and remembers on the replica itself (labels, a state file) what it is: the store is never asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Resources:
    """What a replica asks for: `cpus` in cores, the rest in bytes; `None` means no limit and no claim.

    `gpus` devices, each with `vram` bytes of its memory: shared with others that fit beside it, unless `exclusive`.
    Without `vram` a device is claimed whole. `mig` asks for MIG instances of that profile (`1g.10gb`) instead of GPUs;
    `gpu_model` is part of the device's name, `gpu_labels` what the host's settings must call it, all of them.
    """

    gpus: int = 0
    vram: int | None = None
    exclusive: bool = False
    mig: str | None = None
    gpu_model: str | None = None
    gpu_labels: tuple[str, ...] = ()
    cpus: float | None = None
    memory: int | None = None
    shm: int | None = None

    @property
    def whole_gpus(self) -> bool:
        """Whether nobody else may be on the devices of a replica."""
        return self.gpus > 0 and (self.exclusive or self.vram is None)


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """All an engine needs to start one replica.

    `command` and the values of `env` may hold `{port}`, `{bundle}`, `{name}` and `{python}`, filled in by the engine
    (see `expand`); `{name}` is the `model`'s name, whatever the deployment is called. `image` is a reference by digest
    where the engine is docker. `bundle` is the folder of the staged version on the host; a replica sees it read-only.
    `body` is the digest of everything that shapes the replica: two replicas with one body are interchangeable.
    `log_folder` is the replica's own, made by the caller.
    """

    id: str
    deployment: str
    revision: int
    body: str
    version: str
    bundle: Path
    command: tuple[str, ...]
    log_folder: Path
    env: dict[str, str] = field(default_factory=dict)
    image: str | None = None
    port: int = 8000
    resources: Resources = Resources()
    gpus: tuple[str, ...] = ()
    model: str = ""
    writable_root: bool = False
    user: str | None = None


class Life(StrEnum):
    """How far a replica's process or container has come, as its engine tells."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Found:
    """A replica that the engine found on the host and can prove to be ours.

    `handle` names it beyond doubt (container id; `pid:start time`). `address` is (ip, port) to dial. `started` and
    `ended` are seconds on the agent's `Clock`, `None` when unknown (another boot). `cgroups` maps controller
    (`cpu`, `memory`, `pids`; `unified` under cgroup v2) to the folder to read; `pids` are its main processes.
    Of each of its `gpus` it claims `vram` bytes, or with `exclusive` all of it; neither is known of replicas that an
    older agent started.
    """

    id: str
    deployment: str
    revision: int
    body: str
    version: str
    handle: str
    life: Life
    address: tuple[str, int] | None = None
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False
    reason: str = ""
    gpus: tuple[str, ...] = ()
    cgroups: dict[str, Path] = field(default_factory=dict)
    pids: tuple[int, ...] = ()
    vram: int | None = None
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something that claims our labels or sits in our folder but cannot be proved ours: reported, never touched."""

    handle: str
    description: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """What an engine has, at one moment."""

    replicas: tuple[Found, ...]
    foreign: tuple[Foreign, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long step has come; `total` is `None` while unknown. Units are bytes."""

    text: str
    done: int = 0
    total: int | None = None


Report = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """A `Report` for callers that do not show progress."""


class Engine(Protocol):
    """Runs replicas. Every method raises `EngineUnresponsive` when its deadline passes, `EngineError` when refused."""

    name: str

    async def version(self) -> str:
        """The engine's own version, for people; raises when it cannot be reached."""

    async def inventory(self) -> Inventory:
        """All replicas of this agent on this host, running or ended, from what they remember of themselves."""

    async def resolve(self, image: str, report: Report) -> str:
        """Make `image` present and return it by digest, pulling where needed. Engines without images raise."""

    async def start(self, spec: ReplicaSpec) -> Found:
        """Start one replica. Starting an id that runs already returns that one: the call may be repeated.

        Raises `StartRefused` when what came out differs from what was asked; nothing is left running then.
        """

    async def stop(self, found: Found, grace: float) -> None:
        """Ask it to end, after `grace` seconds make it. Returns when it has ended. Ended already is fine."""

    async def remove(self, found: Found) -> None:
        """Forget an ended replica. Its logs stay. Gone already is fine."""

    async def close(self) -> None:
        """Let go of sockets and threads. Replicas run on."""


def expand(text: str, *, port: int, bundle: str, name: str, python: str) -> str:
    """Fill `{port}`, `{bundle}`, `{name}` and `{python}` in; any other brace stays as it is."""
    for key, value in (("port", str(port)), ("bundle", bundle), ("name", name), ("python", python)):
        text = text.replace("{" + key + "}", value)
    return text


# --- the gateway -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GatewaySeen:
    """What the gateway last told: the routing it has taken over, and what waits or runs in it per cluster.

    `applied` is the digest of the configuration that the gateway confirmed. `active` counts the requests in flight per
    cluster name, streams and held requests included; `requests` those with each endpoint, as `ip:port`.
    """

    applied: str | None
    active: dict[str, int] = field(default_factory=dict)
    version: str = ""
    requests: dict[str, int] = field(default_factory=dict)

    def requests_with(self, found: Found) -> int:
        """Requests in flight with one replica."""
        return 0 if found.address is None else self.requests.get(f"{found.address[0]}:{found.address[1]}", 0)


class Gateway(Protocol):
    """The data plane. Configured by files, asked through its admin socket, never stopped by the agent."""

    async def ensure(self) -> None:
        """Adopt the gateway that runs already, or start one that outlives the agent. Raises `GatewayError`."""

    async def apply(self, resources: RoutingResources) -> None:
        """Write the configuration, make before break, and return once the gateway has confirmed it."""

    async def observe(self) -> GatewaySeen:
        """Read the confirmed configuration and the requests in flight."""

    async def close(self) -> None:
        """Let go of sockets. The gateway runs on."""


@dataclass(frozen=True, slots=True)
class RoutingResources:
    """The configuration of the gateway as its own resources (Envoy v3 API), JSON-able, and their digest."""

    listeners: tuple[dict[str, object], ...]
    routes: tuple[dict[str, object], ...]
    clusters: tuple[dict[str, object], ...]
    endpoints: tuple[dict[str, object], ...]
    digest: str
