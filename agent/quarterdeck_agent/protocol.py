"""The wire between an agent and whoever talks to it: frozen standard-library dataclasses and nothing else.

FastAPI validates requests against these classes and the console decodes responses into them with msgspec, so
neither side needs the other's libraries. Requests forbid unknown fields; readers of responses ignore them, and an
enum value that a newer agent invented is kept as it was sent (see `OpenEnum`).

Units, everywhere: memory and sizes in bytes, durations in seconds, rates per second, ratios 0..1, times aware UTC.
A measurement that could not be taken is `None`, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Literal, Self

API_PREFIX = "/v1"
API_VERSIONS = ("v1",)

OPERATION_HEADER = "Operation-Id"
"""A change repeated with the same id returns the first result and changes nothing."""

GENERATION_HEADER = "If-Match"
"""The deployment's generation that the caller saw; another one means 409 with the winner's operation."""

HEARTBEAT_HEADER = "Quarterdeck-Heartbeat"
"""On a stream of logs: after so many seconds without a line the agent sends an empty one; longer silence is a cut."""

PROBLEM_MEDIA_TYPE = "application/problem+json"


class OpenEnum(StrEnum):
    """An enum whose readers survive values that only newer writers know: the value is kept as sent."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = value.upper()
        member._value_ = value
        return member


class Request:
    """Base of every request body: a field that is not known here is an error, not ignored."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


# --- who answers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """The first thing a console asks. This shape only ever grows."""

    product: str
    agent_version: str
    api_versions: tuple[str, ...]
    host: str
    instance: str
    started_at: datetime
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as RFC 9457 has it, with a stable `code` that programs may match on."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    field: str | None = None
    hint: str | None = None
    operation: str | None = None


# --- versions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ManifestFile(Request):
    """One file of a bundle: its path inside the bundle with `/` between parts, its size, its SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PushRequest(Request):
    """What a version would be made of: every file by content, and `model.toml` as it was read.

    `config` is the parsed `model.toml`; the agent checks it and names the wrong field. `allow_pickle` admits files of
    the pickle family and is recorded with the version.
    """

    files: tuple[ManifestFile, ...]
    config: dict[str, Any]
    allow_pickle: bool = False


@dataclass(frozen=True, slots=True)
class BlobWanted:
    """A blob the agent does not hold whole: send the bytes from `offset` on."""

    sha256: str
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What a push still has to send; `version` is set when nothing has to be sent or done at all."""

    id: str
    label: str
    missing: tuple[BlobWanted, ...]
    version: Version | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable model version. `id` is the SHA-256 of its canonical manifest, `label` names that id for ever.

    `facts` is what its replicas on this host last said they run on: versions of python, torch and CUDA, the device.
    """

    id: str
    label: str
    name: str
    runtime: str
    size: int
    files: tuple[ManifestFile, ...]
    created_at: datetime
    by: str
    config: dict[str, Any] = field(default_factory=dict)
    pickle_allowed: bool = False
    card: str | None = None
    formats: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)


# --- runtimes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Runtime:
    """How versions are served: one entry of the catalogue."""

    name: str
    title: str
    protocol: str
    port: int
    health_path: str
    predict_path: str
    formats: tuple[str, ...]
    engines: tuple[str, ...]
    image: str | None = None
    command: tuple[str, ...] = ()
    origin: Literal["built in", "user"] = "built in"
    homepage: str | None = None


# --- what is wanted --------------------------------------------------------------------------------------------

Handover = Literal["auto", "overlap", "hold"]


@dataclass(frozen=True, slots=True)
class Limits(Request):
    """What the gateway lets through to one deployment.

    `in_flight` requests are with the replicas at once, `queue` more wait (also while requests are held), the next is
    refused with 429 and Retry-After. `timeout` seconds is how long one request may take, `drain` how long a replaced
    revision may finish what it has, `hold` how long requests may wait during a `hold` handover on top of `timeout`,
    `release` how long that handover waits for the memory of the replaced revision to be really free.
    """

    in_flight: int = 256
    queue: int = 512
    timeout: float = 60.0
    drain: float = 60.0
    hold: float = 300.0
    release: float = 60.0


@dataclass(frozen=True, slots=True)
class Spec:
    """The wanted form of a deployment.

    `warm` seconds is how long the replaced revision is kept running, so that rolling back is a weight change.
    `dwell` seconds is how long a new replica must have been ready before it counts; `golden` runs the version's
    golden requests before the switch. `deadline` is how long a rollout may take from start to ready.
    """

    version: str
    label: str
    replicas: int = 1
    handover: Handover = "auto"
    env: dict[str, str] = field(default_factory=dict)
    limits: Limits = Limits()
    warm: float = 600.0
    dwell: float = 2.0
    golden: bool = True
    deadline: float = 600.0
    stopped: bool = False
    restart: int = 0


@dataclass(frozen=True, slots=True)
class DeployRequest(Request):
    """Deploy `version` (a label or an id). What is `None` stays as the running revision has it, or its default."""

    version: str
    replicas: int | None = None
    handover: Handover | None = None
    env: dict[str, str] | None = None
    limits: Limits | None = None
    warm: float | None = None
    dwell: float | None = None
    golden: bool | None = None
    deadline: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class RollbackRequest(Request):
    """Make a new revision with the spec of revision `to`, or of the last one that served before the live one."""

    to: int | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class ScaleRequest(Request):
    """Run this many replicas."""

    replicas: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class ChangeRequest(Request):
    """A change that needs no more than its name: restart, stop, remove."""

    why: str = ""


ChangeKind = Literal["deploy", "rollback", "scale", "restart", "stop", "remove"]
AnyRequest = DeployRequest | RollbackRequest | ScaleRequest | ChangeRequest
"""What is asked for with each kind of change; the last three kinds need no more than a `ChangeRequest`."""


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a diff. `None` on a side means that the field is not there."""

    field: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change would do, worked out by the same code that would do it. Nothing is changed by asking."""

    deployment: str
    generation: int
    handover: str
    why: str
    expected_pause: float | None
    changes: tuple[Change, ...]
    steps: tuple[str, ...]
    warnings: tuple[str, ...]
    if_it_fails: str
    command: str


# --- revisions and operations ----------------------------------------------------------------------------------
#
# Revision:  pending ──▶ serving ──▶ replaced          Operation:  pending ──▶ running ──▶ succeeded
#               │ ╲                                                   │            ├────▶ failed
#               │  ╲──▶ superseded  (a newer one came first)          ╰────────────┴────▶ superseded
#               ╰─────▶ failed


class RevisionOutcome(OpenEnum):
    """Where a revision's story stands."""

    PENDING = "pending"
    SERVING = "serving"
    REPLACED = "replaced"
    SUPERSEDED = "superseded"
    FAILED = "failed"


class OperationState(OpenEnum):
    """Where a change stands."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SUPERSEDED = "superseded"


class FailureReason(OpenEnum):
    """Why a revision or a replica failed."""

    EXITED = "exited"
    OUT_OF_MEMORY = "out_of_memory"
    NEVER_READY = "never_ready"
    GOLDEN_MISMATCH = "golden_mismatch"
    MEMORY_NOT_FREE = "memory_not_free"
    NO_GPU = "no_gpu"
    GPU_LOST = "gpu_lost"
    STAGING = "staging"
    START_REFUSED = "start_refused"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of a rollout as it went: `elapsed` seconds so far or in all."""

    name: str
    state: Literal["running", "done", "failed"]
    started_at: datetime
    elapsed: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Everything worth knowing about a failure, kept after the replica is gone."""

    at: datetime
    step: str
    reason: FailureReason
    message: str
    exit_code: int | None = None
    signal: int | None = None
    last_lines: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Revision:
    """One numbered, append-only record of a spec and what became of it.

    `image` is by digest, once it is known; `gpu_memory_peak` the most bytes that one replica was seen to hold on one
    GPU.
    """

    deployment: str
    number: int
    spec: Spec
    created_at: datetime
    by: str
    operation: str
    why: str = ""
    rollback_of: int | None = None
    handover: str = ""
    handover_why: str = ""
    outcome: RevisionOutcome = RevisionOutcome.PENDING
    served_at: datetime | None = None
    ended_at: datetime | None = None
    steps: tuple[StepRecord, ...] = ()
    failure: Failure | None = None
    image: str | None = None
    gpu_memory_peak: int | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One change asked for by somebody: job, history and audit entry at once.

    `kind` is deploy, rollback, scale, restart, stop, remove, push, remove-version or trust-gpu. `target` is the
    deployment's name, of a version its label, of a GPU its uuid.
    """

    id: str
    kind: str
    target: str
    by: str
    at: datetime
    state: OperationState
    summary: str = ""
    why: str = ""
    revision: int | None = None
    changes: tuple[Change, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    finished_at: datetime | None = None
    code: str | None = None
    detail: str | None = None


# --- what is seen ----------------------------------------------------------------------------------------------
#
# Replica:  starting ──▶ ready ◀──▶ unready        any ──▶ exited (its engine says so) ──▶ gone
#              ╰────────────┴──────────┴──▶ stopping ──▶ exited


class ReplicaState(OpenEnum):
    """What a replica is doing, as far as anyone can tell."""

    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"
    STOPPING = "stopping"
    EXITED = "exited"


class DeploymentState(OpenEnum):
    """One word for a deployment, the worst thing first."""

    SERVING = "serving"
    DEPLOYING = "deploying"
    HOLDING = "holding"
    DEGRADED = "degraded"
    FAILED = "failed"
    STOPPED = "stopped"
    REMOVING = "removing"


class PartState(OpenEnum):
    """How a part of the host is: the engine, the gateway, NVML."""

    OK = "ok"
    UNRESPONSIVE = "unresponsive"
    ABSENT = "absent"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the host and how it is; `since` is when that began, `detail` says what to do if it is not ok."""

    name: str
    state: PartState
    since: datetime
    version: str = ""
    detail: str = ""


class GpuHealth(OpenEnum):
    """How far a GPU can be trusted: `degraded` still takes claims, `sick` and `lost` take no new ones."""

    OK = "ok"
    DEGRADED = "degraded"
    SICK = "sick"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG instance of it, as NVML tells it now: what changes from second to second.

    Memory in bytes, power in watts, temperature in °C, clocks in hertz, PCIe traffic in bytes a second; utilisation,
    encoder, decoder and fan 0..1. `memory_free` is what NVML says is free, `memory_reserved` what the driver keeps for
    itself. `throttle` are the reasons for lower clocks that cost speed, empty where there is none. A MIG instance has
    its GPU's uuid as `parent`, its profile (`1g.10gb`) and its number there as `instance`; the GPU it is cut from stays
    in the list with `mig` set and takes no claims itself. `why` says in words why `health` is not `ok`, and what to do.
    """

    index: int
    uuid: str
    name: str
    memory_total: int | None = None
    memory_used: int | None = None
    utilisation: float | None = None
    temperature: float | None = None
    power: float | None = None
    power_limit: float | None = None
    memory_free: int | None = None
    memory_reserved: int | None = None
    utilisation_memory: float | None = None
    utilisation_encoder: float | None = None
    utilisation_decoder: float | None = None
    clock_graphics: int | None = None
    clock_memory: int | None = None
    throttle: tuple[str, ...] = ()
    fan: float | None = None
    performance_state: int | None = None
    pcie_sent: int | None = None
    pcie_received: int | None = None
    mig: bool = False
    parent: str | None = None
    profile: str | None = None
    health: GpuHealth = GpuHealth.OK
    why: str = ""
    instance: int | None = None


@dataclass(frozen=True, slots=True)
class NvLink:
    """One NVLink of a GPU: `peer` is the uuid of the GPU at its other end, `None` for a switch or where unknown."""

    link: int
    active: bool
    version: int | None = None
    peer: str | None = None


@dataclass(frozen=True, slots=True)
class XidEvent:
    """One Xid that the driver reported for a GPU; `meaning` and `action` are NVIDIA's catalogue's words."""

    at: datetime
    code: int
    meaning: str
    action: str


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What seldom changes about one GPU or MIG instance (`uuid`). Counters since the driver was loaded, or for ever.
    `remapped_rows` are all, `remapped_rows_uncorrectable` those of them for errors that could not be corrected.
    `gpu_instance` is the id of the GPU instance that a MIG instance belongs to. `temperature_memory` is that of its
    memory, read as seldom as all of this.

    `compute_capability` is (major, minor); `driver` the driver's version, `cuda` the newest CUDA it can run.
    `xids` are the newest ones, newest first.
    """

    uuid: str
    pci_bus: str | None = None
    driver: str | None = None
    cuda: str | None = None
    compute_capability: tuple[int, int] | None = None
    compute_mode: str | None = None
    persistence: bool | None = None
    mig_enabled: bool | None = None
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    power_limit_max: float | None = None
    temperature_slowdown: float | None = None
    temperature_shutdown: float | None = None
    clock_graphics_max: int | None = None
    clock_memory_max: int | None = None
    nvlinks: tuple[NvLink, ...] = ()
    ecc_enabled: bool | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    ecc_corrected_ever: int | None = None
    ecc_uncorrected_ever: int | None = None
    retired_pages: int | None = None
    retired_pending: bool | None = None
    remapped_rows: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    labels: tuple[str, ...] = ()
    xids: tuple[XidEvent, ...] = ()
    remapped_rows_uncorrectable: int | None = None
    gpu_instance: int | None = None
    temperature_memory: float | None = None
    pcie_replays: int | None = None


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """One process with memory on a GPU, and whose it is: a replica's, or *unmanaged* where `replica` is `None`.

    `memory` in bytes, `utilisation` 0..1 of the GPU; `None` where the driver does not tell. `user` and `command` are
    as the host's process table has them, the command without its arguments.
    """

    pid: int
    memory: int | None = None
    utilisation: float | None = None
    kind: Literal["compute", "graphics"] = "compute"
    user: str | None = None
    command: str | None = None
    replica: str | None = None
    deployment: str | None = None
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Whose memory it is on one GPU or MIG instance: every process, largest first.

    `unexplained` bytes are in use but belong to no process that the driver lists and not to what it reserves.
    """

    uuid: str
    processes: tuple[GpuProcess, ...] = ()
    unexplained: int | None = None


@dataclass(frozen=True, slots=True)
class Replica:
    """One running container or process of one revision. `handle` is a container id or `pid:start`.

    `restarts` counts the ends that nobody asked for of all replicas of its kind, until they have run well for a while.
    """

    id: str
    deployment: str
    revision: int
    state: ReplicaState
    engine: str
    handle: str
    reason: str = ""
    address: str | None = None
    started_at: datetime | None = None
    ready_since: datetime | None = None
    restarts: int = 0
    exit_code: int | None = None
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """A deployment at a glance. Gauges travel apart from it, see `Traffic` and `ReplicaGauges`."""

    name: str
    generation: int
    state: DeploymentState
    summary: str
    wanted_revision: int
    live_revision: int | None
    label: str
    version: str
    replicas_wanted: int
    replicas_ready: int
    endpoint: str
    predict_path: str
    since: datetime
    by: str
    operation: str | None = None
    warm_revision: int | None = None
    warm_until: datetime | None = None
    replicas: tuple[Replica, ...] = ()
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class DeploymentDetail:
    """A deployment with its revisions, newest first, its live version and its gauges."""

    status: DeploymentStatus
    revisions: tuple[Revision, ...]
    version: Version | None = None
    traffic: tuple[Traffic, ...] = ()
    replicas: tuple[ReplicaGauges, ...] = ()


# --- gauges ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostGauges:
    """The machine's own figures."""

    at: datetime
    cpu: float | None = None
    load1: float | None = None
    memory_total: int | None = None
    memory_used: int | None = None
    disk_total: int | None = None
    disk_used: int | None = None
    agent_memory: int | None = None
    agent_cpu: float | None = None


@dataclass(frozen=True, slots=True)
class ReplicaGauges:
    """What one replica uses: `cpu` in cores, memory in bytes; `gpu_memory` on all its GPUs together."""

    replica: str
    deployment: str
    revision: int
    cpu: float | None = None
    memory: int | None = None
    memory_limit: int | None = None
    processes: int | None = None
    gpu_memory: int | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the gateway counted for one revision since the last sample. Latencies in seconds."""

    deployment: str
    revision: int
    weight: float
    rate: float | None = None
    errors: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    active: int | None = None
    held: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One point of a series: its value at `at` or, of a series with a longer step, its mean and `max` from `at` on."""

    at: datetime
    value: float | None
    max: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """One named series: `name` such as `host.cpu` or `traffic.rate`, `key` such as a replica's id.

    Samples are `step` seconds apart, oldest first; a gap is a sample without a value.
    """

    name: str
    key: str
    unit: str
    samples: tuple[Sample, ...]
    step: float = 1.0


@dataclass(frozen=True, slots=True)
class SeriesName:
    """One series that there is: what to ask for, and its unit (empty where it is a plain number)."""

    name: str
    key: str
    unit: str


@dataclass(frozen=True, slots=True)
class HostInfo:
    """What does not change while the agent runs."""

    name: str
    instance: str
    agent_version: str
    os: str
    kernel: str
    architecture: str
    cpus: int
    memory_total: int
    boot_id: str
    started_at: datetime
    engine: str
    gateway_url: str
    data_folder: str


@dataclass(frozen=True, slots=True)
class HostStatus:
    """Everything that was last seen on a host: the answer to `GET /v1/status` and the snapshot of `/v1/watch`."""

    info: HostInfo
    gauges: HostGauges | None = None
    parts: tuple[Part, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    gpu_facts: tuple[GpuFacts, ...] = ()
    gpu_uses: tuple[GpuUse, ...] = ()
    deployments: tuple[DeploymentStatus, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    replica_gauges: tuple[ReplicaGauges, ...] = ()
    operations: tuple[Operation, ...] = ()
    versions: tuple[Version, ...] = ()


# --- watch -----------------------------------------------------------------------------------------------------

DeltaKind = Literal[
    "info",
    "gauges",
    "part",
    "gpu",
    "gpu_facts",
    "gpu_use",
    "deployment",
    "traffic",
    "replica_gauges",
    "operation",
    "version",
    "revision",
]


@dataclass(frozen=True, slots=True)
class Delta:
    """One fact that changed: the new value of `kind`/`key`, or its end when `value` is `None`.

    Keys: part name, GPU uuid (for all three kinds about GPUs), deployment name, `deployment/revision` for traffic and
    revision, replica id, operation id, version id; empty for `info` and `gauges`. `value` has the shape of the class
    of that kind.
    """

    kind: DeltaKind
    key: str
    value: Any


# --- logs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a replica's output, or a marker: `dropped` lines that a slow reader missed, or rotation lost."""

    at: datetime
    deployment: str
    revision: int
    replica: str
    stream: Literal["stdout", "stderr", "agent"]
    text: str
    dropped: int = 0


# --- doctor ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that `qd doctor` looked at, and the mend where it is not well."""

    name: str
    result: Literal["ok", "warning", "failed"]
    detail: str
    mend: str = ""
