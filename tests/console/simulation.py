"""A SIMULATED fleet for the terminal UI's tests, pictures and benchmarks: no agent, no network, no GPU.

`Simulation` is a `Backend` over plain values. Nothing moves unless it is told to: `at` is frozen, gauges follow a
formula of the tick, and whoever drives it says when a host is lost, a tick passes or a change ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from quarterdeck_agent import protocol as p
from quarterdeck_console.client import WatchEvent
from quarterdeck_console.config import Fleet, Host
from quarterdeck_console.errors import ConsoleError, NotFound, Unreachable
from quarterdeck_console.fleet import FleetEvent
from quarterdeck_console.tui.messages import LogEntry, LogWish, PushCame, Target, Wish

NOW = datetime(2026, 11, 23, 14, 3, 22, tzinfo=UTC)
GIB = 1 << 30


def ago(**parts: float) -> datetime:
    """So long before the simulation's now."""
    return NOW - timedelta(**parts)


# --- builders ------------------------------------------------------------------------------------------------------


def version(label: str, **more: Any) -> p.Version:
    name = label.partition(":")[0]
    id_, weights, tokenizer = (hashlib.sha256(f"{label} {part}".encode()).hexdigest() for part in ("", "pt", "json"))
    values: dict[str, Any] = {
        "id": id_, "label": label, "name": name, "runtime": "torchscript", "size": 3 * GIB,
        "files": (p.ManifestFile("model.pt", 3 * GIB, weights), p.ManifestFile("tokenizer.json", 2_100_000, tokenizer)),
        "created_at": ago(days=3), "by": "ana", "formats": ("torchscript",), "config": {"name": name},
    }  # fmt: skip
    return p.Version(**(values | more))


def replica(name: str, revision: int, number: int = 1, **more: Any) -> p.Replica:
    values: dict[str, Any] = {
        "id": f"{name}-{revision}-{number}", "deployment": name, "revision": revision, "state": p.ReplicaState.READY,
        "engine": "docker", "handle": "4f1c2a9be3d0", "started_at": ago(hours=6), "ready_since": ago(hours=6),
    }  # fmt: skip
    return p.Replica(**(values | more))


def deployment(name: str, label: str, revision: int, **more: Any) -> p.DeploymentStatus:
    wanted = more.get("replicas_wanted", 1)
    values: dict[str, Any] = {
        "name": name, "generation": revision, "state": p.DeploymentState.SERVING,
        "summary": f"serving {label}",
        "wanted_revision": revision, "live_revision": revision, "label": label, "version": version(label).id,
        "replicas_wanted": wanted, "replicas_ready": wanted, "endpoint": f"http://10.0.0.1:8080/{name}",
        "predict_path": f"/v2/models/{name}/infer", "since": ago(hours=6), "by": "ana",
        "replicas": tuple(replica(name, revision, number + 1) for number in range(wanted)),
    }  # fmt: skip
    return p.DeploymentStatus(**(values | more))


def operation(kind: str, target: str, id: str = "op-1", **more: Any) -> p.Operation:
    values: dict[str, Any] = {
        "id": id, "kind": kind, "target": target, "by": "ana", "at": ago(minutes=2),
        "state": p.OperationState.SUCCEEDED,
        "summary": f"{kind} {target}", "finished_at": ago(minutes=1, seconds=50),
    }  # fmt: skip
    return p.Operation(**(values | more))


def gpu(host: str, index: int, **more: Any) -> p.Gpu:
    values: dict[str, Any] = {
        "index": index, "uuid": f"GPU-{host}-{index}", "name": "NVIDIA H100 80GB HBM3", "memory_total": 80 * GIB,
        "memory_used": 0, "utilisation": 0.0, "temperature": 31.0, "power": 70.0, "power_limit": 700.0,
    }  # fmt: skip
    return p.Gpu(**(values | more))


def mig(host: str, index: int, instance: int, profile: str, **more: Any) -> p.Gpu:
    """Instance `instance` of GPU `index`; its memory as its profile (`1g.10gb`) says."""
    whole = gpu(host, index)
    values: dict[str, Any] = {
        "index": index, "instance": instance, "uuid": f"MIG-{host}-{index}-{instance}",
        "name": f"{whole.name} MIG {profile}",
        "memory_total": int(profile.partition(".")[2].removesuffix("gb")) * GIB, "memory_used": 0,
        "parent": whole.uuid, "profile": profile,
    }  # fmt: skip
    return p.Gpu(**(values | more))


def facts(host: str, index: int, **more: Any) -> p.GpuFacts:
    values: dict[str, Any] = {
        "uuid": f"GPU-{host}-{index}", "pci_bus": f"00000000:{0x18 + index:02X}:00.0", "driver": "570.86.15",
        "cuda": "12.8", "compute_capability": (9, 0), "compute_mode": "default", "persistence": True,
        "mig_enabled": False, "pcie_generation": 5, "pcie_generation_max": 5, "pcie_width": 16, "pcie_width_max": 16,
        "temperature_slowdown": 87.0, "temperature_shutdown": 92.0, "ecc_enabled": True, "ecc_corrected": 0,
        "ecc_uncorrected": 0, "ecc_corrected_ever": 4, "ecc_uncorrected_ever": 0, "remapped_rows": 0,
        "remap_pending": False, "remap_failed": False,
    }  # fmt: skip
    return p.GpuFacts(**(values | more))


def held(found: p.Replica, memory: int, pid: int = 40_000, **more: Any) -> p.GpuProcess:
    """A replica's process with memory on a GPU."""
    values: dict[str, Any] = {
        "pid": pid, "memory": memory, "user": "10001", "command": "python", "replica": found.id,
        "deployment": found.deployment, "revision": found.revision,
    }  # fmt: skip
    return p.GpuProcess(**(values | more))


def host_status(name: str, **more: Any) -> p.HostStatus:
    info = p.HostInfo(
        name=name, instance=f"i-{name}", agent_version="0.1.0", os="Debian 12", kernel="6.1", architecture="x86_64",
        cpus=64, memory_total=512 * GIB, boot_id="b", started_at=ago(days=11), engine="docker",
        gateway_url="http://10.0.0.1:8080", data_folder="/var/lib/quarterdeck",
    )  # fmt: skip
    gauges = p.HostGauges(
        at=NOW, cpu=0.31, load1=4.0, memory_total=512 * GIB, memory_used=317 * GIB, disk_total=4000 * GIB,
        disk_used=1640 * GIB,
    )  # fmt: skip
    parts = (p.Part("engine", p.PartState.OK, ago(days=11)), p.Part("gateway", p.PartState.OK, ago(days=11)))
    values: dict[str, Any] = {"info": info, "gauges": gauges, "parts": parts}
    return p.HostStatus(**(values | more))


# --- the fleet of the sketches ---------------------------------------------------------------------------------------

REFUSED = p.Failure(
    at=ago(minutes=2), step="golden requests", reason=p.FailureReason.GOLDEN_MISMATCH,
    message="golden request 2 of 5 differs (0.91 → 0.12, tolerance 0.05)",
    last_lines=("WARNING tokenizer.json differs from training", "served golden request 2"),
    changes=(p.Change("version", "embed:1.2", "embed:1.3"), p.Change("env TOKENIZER", None, "fast")),
)  # fmt: skip


def sketch() -> dict[str, p.HostStatus]:
    """All the states a person should recognise at a glance: serving, swapping, refused, a lost GPU, a host to lose."""
    return {"gpu-a1": _a1(), "gpu-a2": _a2(), "gpu-b1": _b1(), "cpu-c1": _c1()}


LINKED = (
    (p.NvLink(0, True, 4, "GPU-gpu-a1-1"), p.NvLink(1, True, 4, "GPU-gpu-a1-1")),
    (p.NvLink(0, True, 4, "GPU-gpu-a1-0"), p.NvLink(1, True, 4, "GPU-gpu-a1-0")),
    (p.NvLink(0, False),),
)  # fmt: skip
XID = p.XidEvent(ago(minutes=5), 79, "the GPU fell off the bus", "reboot the host")
FELL_OFF = "Xid 79 at 13:58 UTC on 23 Nov: the GPU fell off the bus; drain the host and reboot"


def _a1() -> p.HostStatus:
    chat = deployment(
        "llama-chat", "llama-chat:8b-4", 17, replicas_wanted=2, since=ago(days=3, hours=4),
        replicas=(replica("llama-chat", 17, 1, gpus=("GPU-gpu-a1-0",)),
                  replica("llama-chat", 17, 2, gpus=("GPU-gpu-a1-1",))),
    )  # fmt: skip
    steps = (
        p.StepRecord("staged", "done", ago(seconds=12), 0.4),
        p.StepRecord("freeing GPU 2", "running", ago(seconds=11), 11.0),
    )
    swap = deployment(
        "reranker", "reranker:2.0", 6, state=p.DeploymentState.HOLDING, summary="reranker:2.1: hold (freeing GPU 2)",
        live_revision=5,
        replicas_ready=0, since=ago(seconds=12), by="ci", operation="op-swap",
        replicas=(replica("reranker", 5, state=p.ReplicaState.STOPPING, gpus=("GPU-gpu-a1-2",)),),
    )  # fmt: skip
    running = operation(
        "deploy", "reranker", "op-swap", by="ci", at=ago(seconds=12), state=p.OperationState.RUNNING,
        summary="deploy reranker:2.1", steps=steps, finished_at=None, revision=6,
        changes=(p.Change("version", "reranker:2.0", "reranker:2.1"),),
    )  # fmt: skip
    return host_status(
        "gpu-a1",
        gpus=(
            gpu("gpu-a1", 0, utilisation=0.71, memory_used=61 * GIB, temperature=64.0, power=512.0),
            gpu("gpu-a1", 1, utilisation=0.99, memory_used=79 * GIB, temperature=71.0, power=688.0),
            gpu("gpu-a1", 2),
        ),
        gpu_facts=tuple(facts("gpu-a1", index, nvlinks=LINKED[index]) for index in range(3)),
        gpu_uses=(
            p.GpuUse(
                "GPU-gpu-a1-0",
                (held(chat.replicas[0], 56 * GIB, 40_117),
                 p.GpuProcess(4711, 3 * GIB, 0.02, user="alice", command="python"),
                 p.GpuProcess(2101, 300 << 20, kind="graphics", user="root", command="Xorg")),
                unexplained=int(1.7 * GIB),
            ),
            p.GpuUse("GPU-gpu-a1-1", (held(chat.replicas[1], 79 * GIB, 40_382),), unexplained=0),
            p.GpuUse("GPU-gpu-a1-2", (), unexplained=0),
        ),
        replica_gauges=tuple(
            p.ReplicaGauges(each.id, each.deployment, each.revision, 1.5, 9 * GIB, 32 * GIB, 12, memory)
            for each, memory in zip(chat.replicas, (56 * GIB, 79 * GIB), strict=True)
        ),
        deployments=(chat, swap),
        traffic=(
            p.Traffic("llama-chat", 17, 1.0, rate=38.2, errors=0.0, p50=0.18, p95=0.412, p99=0.9, active=12, held=0),
            p.Traffic("reranker", 6, 1.0, rate=0.0, errors=0.0, held=40, active=0),
        ),
        operations=(running, operation("deploy", "llama-chat", "op-chat", at=ago(days=3, hours=4), revision=17)),
        versions=(
            version("llama-chat:8b-4", created_at=ago(days=4)), version("llama-chat:8b-3", created_at=ago(days=20)),
            version("reranker:2.1", created_at=ago(minutes=9)), version("reranker:2.0", created_at=ago(days=30)),
        ),
    )  # fmt: skip


def _a2() -> p.HostStatus:
    embed = deployment(
        "embed", "embed:1.2", 8, wanted_revision=8, since=ago(hours=6), failure=REFUSED,
        summary=f"serving embed:1.2; the last deploy failed: {REFUSED.message}",
        replicas=(replica("embed", 8, gpus=("GPU-gpu-a2-0",)),), warm_revision=7, warm_until=NOW + timedelta(minutes=8),
    )  # fmt: skip
    refused = operation(
        "deploy", "embed", "op-embed", at=ago(minutes=2), state=p.OperationState.FAILED, revision=9,
        code="golden_mismatch", summary="deploy embed:1.3",
        detail="refused: golden request 2 of 5 differs (0.91 → 0.12, tolerance 0.05); embed:1.2 keeps serving",
    )  # fmt: skip
    whisper = deployment(
        "whisper", "whisper:3", 2, replicas_wanted=2, replicas_ready=1, state=p.DeploymentState.DEGRADED,
        summary="1 of 2 replicas ready, 3 crashes in 10 minutes: CUDA error: uncorrectable ECC error",
        since=ago(minutes=5), by="bo",
    )  # fmt: skip
    return host_status(
        "gpu-a2",
        gauges=p.HostGauges(
            at=NOW, cpu=0.04, memory_total=512 * GIB, memory_used=61 * GIB, disk_total=4000 * GIB, disk_used=720 * GIB
        ),
        parts=(
            p.Part("engine", p.PartState.OK, ago(days=11)),
            p.Part("nvml", p.PartState.OK, ago(days=11), "570.86.15"),
        ),
        gpus=(
            gpu("gpu-a2", 0, utilisation=0.12, memory_used=4 * GIB), gpu("gpu-a2", 1),
            p.Gpu(2, "GPU-gpu-a2-2", "NVIDIA H100 80GB HBM3", health=p.GpuHealth.LOST, why=FELL_OFF),
        ),
        gpu_facts=(
            facts("gpu-a2", 0), facts("gpu-a2", 1, ecc_corrected=17, ecc_corrected_ever=212),
            p.GpuFacts("GPU-gpu-a2-2", "00000000:1A:00.0", xids=(XID,)),
        ),
        gpu_uses=(
            p.GpuUse("GPU-gpu-a2-0", (held(embed.replicas[0], int(3.8 * GIB), 51_020),), unexplained=int(0.2 * GIB)),
            p.GpuUse("GPU-gpu-a2-1", (), unexplained=0),
        ),
        replica_gauges=(
            p.ReplicaGauges(embed.replicas[0].id, "embed", 8, 1.5, 4 * GIB, 8 * GIB, 12, int(3.8 * GIB)),
        ),
        deployments=(embed, whisper),
        traffic=(
            p.Traffic("embed", 8, 1.0, rate=91.7, errors=0.0, p50=0.009, p95=0.018, p99=0.031, active=2, held=0),
            p.Traffic("embed", 7, 0.0, rate=0.0, errors=0.0),
            p.Traffic("whisper", 2, 1.0, rate=4.1, errors=0.2, p50=0.6, p95=1.4, p99=2.2, active=3, held=0),
        ),
        operations=(refused, operation("deploy", "whisper", "op-whisper", by="bo", at=ago(days=2), revision=2)),
        versions=(
            version("embed:1.3", created_at=ago(minutes=5)), version("embed:1.2", created_at=ago(hours=7)),
            version("embed:1.1", created_at=ago(days=21)), version("whisper:3", created_at=ago(days=2)),
        ),
    )  # fmt: skip


def _b1() -> p.HostStatus:
    vad = deployment(
        "vad", "vad:6.2.3", 4, since=ago(days=11), by="bo", replicas=(replica("vad", 4, gpus=("MIG-gpu-b1-0-1",)),)
    )
    return host_status(
        "gpu-b1",
        gauges=p.HostGauges(
            at=NOW, cpu=0.58, memory_total=128 * GIB, memory_used=91 * GIB, disk_total=1000 * GIB, disk_used=660 * GIB
        ),
        gpus=(
            gpu("gpu-b1", 0, utilisation=None, memory_used=30 * GIB, temperature=48.0, power=301.0, mig=True),
            mig("gpu-b1", 0, 0, "3g.40gb", memory_used=22 * GIB), mig("gpu-b1", 0, 1, "1g.10gb", memory_used=8 * GIB),
            mig("gpu-b1", 0, 2, "1g.10gb"),
        ),
        gpu_facts=(facts("gpu-b1", 0, mig_enabled=True),),
        gpu_uses=(
            p.GpuUse("MIG-gpu-b1-0-0", (p.GpuProcess(977, 22 * GIB, user="bo", command="jupyter"),), 0),
            p.GpuUse("MIG-gpu-b1-0-1", (held(vad.replicas[0], int(7.4 * GIB), 8_021),), int(0.6 * GIB)),
        ),
        deployments=(vad,),
        traffic=(p.Traffic("vad", 4, 1.0, rate=12.0, errors=0.0, p95=0.006),), versions=(version("vad:6.2.3"),),
    )  # fmt: skip


def _c1() -> p.HostStatus:
    vad = deployment("vad", "vad:6.2.3", 3, since=ago(days=9), by="ci", replicas_wanted=3)
    old = deployment(
        "digits", "digits:1", 5, state=p.DeploymentState.STOPPED, summary="stopped",
        replicas_ready=0, replicas_wanted=0, by="bo",
        since=ago(days=1), replicas=(),
    )  # fmt: skip
    return host_status(
        "cpu-c1", deployments=(vad, old), versions=(version("vad:6.2.3"), version("digits:1")),
        traffic=(p.Traffic("vad", 3, 1.0, rate=210.4, errors=0.0, p50=0.001, p95=0.004, p99=0.007),),
    )  # fmt: skip


def fleet_file(names: Iterable[str], protected: tuple[str, ...] = (), **more: Any) -> Fleet:
    """The fleet file that knows these hosts."""
    hosts = tuple(Host(name, f"unix:///nowhere/{name}.sock", protected=name in protected) for name in names)
    return Fleet(hosts, **({"name": "prod", "colour": "red"} | more))


# --- the backend -----------------------------------------------------------------------------------------------------


@dataclass
class Simulation:
    """A fleet that does what its driver says. `asked` keeps what the UI wanted from it."""

    status: dict[str, p.HostStatus] = field(default_factory=sketch)
    at: datetime = NOW
    asked: list[tuple[str, Any]] = field(default_factory=list)
    previews: dict[Target, p.Preview | ConsoleError] = field(default_factory=dict)
    details: dict[Target, p.DeploymentDetail] = field(default_factory=dict)
    log_entries: list[LogEntry] = field(default_factory=list)
    push_steps: list[PushCame] = field(default_factory=list)
    push_hangs: bool = False
    points: dict[tuple[str, str, str], p.Series] = field(default_factory=dict)
    removal_errors: dict[str, ConsoleError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.events_queue: asyncio.Queue[FleetEvent] = asyncio.Queue()
        self.log_queue: asyncio.Queue[LogEntry] = asyncio.Queue()
        self.tick_number = 0

    def now(self) -> datetime:
        return self.at

    # --- driving ---

    def snapshot(self, host: str) -> None:
        self.events_queue.put_nowait(FleetEvent(host, event=WatchEvent(None, status=self.status[host])))

    def delta(self, host: str, kind: Any, key: str, value: Any) -> None:
        self.events_queue.put_nowait(FleetEvent(host, event=WatchEvent(None, delta=p.Delta(kind, key, value))))

    def lose(self, host: str, detail: str = "connection refused") -> None:
        self.events_queue.put_nowait(FleetEvent(host, error=Unreachable(detail, host=host)))

    def tick(self) -> None:
        """One second passes on every host: new gauges, nothing else."""
        self.tick_number += 1
        self.at += timedelta(seconds=1)
        for name, status in self.status.items():
            self._tick_host(name, status)

    def tick_part(self, part: int, parts: int) -> None:
        """One of `parts` of the hosts lives through a second; the clock goes on with the last."""
        names = list(self.status)
        for name in names[part::parts]:
            self._tick_host(name, self.status[name])
        if part == parts - 1:
            self.tick_number += 1
            self.at += timedelta(seconds=1)

    def _tick_host(self, name: str, status: p.HostStatus) -> None:
        if status.gauges is not None:
            cpu = self._wave(name, status.gauges.cpu or 0.2)
            self.delta(name, "gauges", "", replace(status.gauges, at=self.at, cpu=cpu))
        for each in status.gpus:
            if each.utilisation is not None:
                self.delta(name, "gpu", each.uuid, replace(each, utilisation=self._wave(each.uuid, each.utilisation)))
        for traffic in status.traffic:
            if traffic.rate:
                rate = traffic.rate * (0.8 + 0.4 * self._wave(traffic.deployment, 0.5))
                self.delta(name, "traffic", f"{traffic.deployment}/{traffic.revision}", replace(traffic, rate=rate))

    def _wave(self, key: str, middle: float) -> float:
        phase = sum(key.encode()) % 17
        return min(1.0, max(0.0, middle + 0.15 * math.sin((self.tick_number + phase) / 3)))

    # --- the backend's side ---

    async def events(self) -> AsyncGenerator[FleetEvent, None]:
        for host in self.status:
            self.snapshot(host)
        while True:
            yield await self.events_queue.get()

    async def detail(self, target: Target) -> p.DeploymentDetail:
        self.asked.append(("detail", target))
        if target not in self.details:
            found = [each for each in self.status[target.host].deployments if each.name == target.name]
            if not found:
                raise NotFound(f"{target.host} has no deployment {target.name}", host=target.host)
            return simulated_detail(self.status[target.host], found[0])
        return self.details[target]

    async def series(
        self, host: str, name: str, key: str, since: datetime | None, points: int | None = None
    ) -> p.Series:
        self.asked.append(("series", (host, name, key)))
        if (host, name, key) in self.points:
            return self.points[(host, name, key)]
        step = 60.0 if since is None else max(1.0, (self.at - since).total_seconds() / 60)
        scale = SCALES.get(name, 1.0)
        samples = tuple(
            p.Sample(self.at - timedelta(seconds=step * (60 - n)), scale * (0.5 + 0.4 * math.sin(n / 5)))
            for n in range(60)
        )
        return p.Series(name, key, "ratio", samples, step)

    async def preview(self, wish: Wish, target: Target) -> p.Preview:
        self.asked.append(("preview", (wish, target)))
        found = self.previews.get(target, simulated_preview(wish, target))
        if isinstance(found, ConsoleError):
            raise found
        return found

    async def change(self, wish: Wish, target: Target) -> AsyncGenerator[p.Operation, None]:
        self.asked.append(("change", (wish, target)))
        yield operation(wish.kind, target.name, "op-new", by="me", at=self.at, summary=f"{wish.kind} {target.name}")

    async def logs(self, wish: LogWish) -> AsyncGenerator[LogEntry, None]:
        self.asked.append(("logs", wish))
        for entry in self.log_entries:
            yield entry
        while wish.follow:
            yield await self.log_queue.get()

    async def push(self, hosts: tuple[str, ...], folder: str, allow_pickle: bool) -> AsyncGenerator[PushCame, None]:
        self.asked.append(("push", (hosts, folder, allow_pickle)))
        try:
            for step in self.push_steps:
                yield step
            if self.push_hangs:
                await asyncio.Event().wait()
        finally:
            self.asked.append(("push ended", hosts))

    async def remove_version(self, host: str, id: str) -> None:
        self.asked.append(("remove version", (host, id)))
        if (error := self.removal_errors.get(host)) is not None:
            raise error

    def changes(self) -> list[tuple[Wish, Target]]:
        """The changes that were asked for: what no test of a No path may find anything in."""
        return [what for kind, what in self.asked if kind == "change"]


SCALES = {"gpu.memory": 80.0 * GIB, "gpu.temperature": 90.0, "gpu.power": 700.0}
"""What a simulated history goes up to."""


def simulated_preview(wish: Wish, target: Target) -> p.Preview:
    """A plan as an agent would word it."""
    if wish.kind == "deploy" and target.name == "reranker":
        return p.Preview(
            target.name, 6, "hold", "needs 38 GiB on one GPU, 19 GiB free beside 2.0 (measured peak 41 GiB)", 25.0,
            (p.Change("version", "reranker:2.0", "reranker:2.1"),),
            ("hold requests", "drain and stop revision 5", "wait for 41 GiB on GPU 2",
             "start revision 6", "golden requests", "release"),
            (), "reranker:2.0 starts again", "qd deploy reranker:2.1",
        )  # fmt: skip
    return p.Preview(
        target.name, 8, "overlap", "both fit: 3.8 GiB of 76 GiB free", None,
        (p.Change("version", "embed:1.2", "embed:1.1"),) if wish.kind in ("deploy", "rollback") else
        (p.Change(wish.kind, "1", "2"),),
        ("start", "wait until ready", "golden requests", "switch", "drain revision 8"), (),
        "the running revision goes on serving", f"qd {wish.kind} {target.name}",
    )  # fmt: skip


def simulated_detail(status: p.HostStatus, found: p.DeploymentStatus) -> p.DeploymentDetail:
    """Four revisions: one refused, the live one, the warm one before it, and one that was rolled back."""
    live = found.live_revision or 1

    def revision(number: int, label: str, **more: Any) -> p.Revision:
        values: dict[str, Any] = {
            "deployment": found.name, "number": number, "spec": p.Spec(version(label).id, label),
            "created_at": ago(days=live - number + 1),
            "by": "ana", "operation": f"op-{number}", "handover": "overlap", "handover_why": "both fit",
            "outcome": p.RevisionOutcome.REPLACED, "steps": STEPS, "gpu_memory_peak": int((3 + number / 10) * GIB),
        }  # fmt: skip
        return p.Revision(**(values | more))

    model = found.label.partition(":")[0]
    newest = [
        revision(
            live + 1, f"{model}:1.3", outcome=p.RevisionOutcome.FAILED, failure=REFUSED, created_at=ago(minutes=2),
            steps=(*STEPS[:-1], replace(STEPS[-1], state="failed", detail="2 of 5")),
        )
    ]  # fmt: skip
    revisions = (
        *(newest if found.failure is not None else []),
        revision(
            live,
            found.label,
            outcome=p.RevisionOutcome.SERVING,
            served_at=found.since,
            created_at=found.since,
            by=found.by,
        ),
        *([revision(live - 1, f"{model}:1.1", by="ci")] if live > 1 else []),
        *([revision(live - 2, found.label, by="bo", why="latency", rollback_of=live - 3)] if live > 3 else []),
    )
    card = f"# {model}\n\nA **simulated** model.\n\n| metric | value |\n|---|---|\n| accuracy | 0.97 |\n"
    return p.DeploymentDetail(
        found, revisions, version(found.label, card=card),
        tuple(t for t in status.traffic if t.deployment == found.name),
        tuple(
            p.ReplicaGauges(r.id, found.name, r.revision, 1.5, 4 * GIB, 8 * GIB, 12, 3 * GIB) for r in found.replicas
        ),
    )  # fmt: skip


STEPS = (
    p.StepRecord("staged", "done", ago(hours=6), 0.4), p.StepRecord("started", "done", ago(hours=6), 6.1),
    p.StepRecord("ready", "done", ago(hours=6), 4.4),
    p.StepRecord("golden requests", "done", ago(hours=6), 0.3, "5 of 5"),
)  # fmt: skip


def large(hosts: int, gpus: int, deployments: int) -> dict[str, p.HostStatus]:
    """A big fleet, all serving: for figures of speed."""
    made = {}
    stranger = p.GpuProcess(4711, 40 * GIB, user="alice", command="python")
    for number in range(hosts):
        name = f"gpu-{number:04d}"
        made[name] = host_status(
            name,
            gpus=tuple(gpu(name, index, utilisation=0.5, memory_used=40 * GIB) for index in range(gpus)),
            gpu_uses=tuple(p.GpuUse(f"GPU-{name}-{index}", (stranger,), 0) for index in range(gpus)),
            deployments=tuple(deployment(f"model-{n}", f"model-{n}:1", 1) for n in range(deployments)),
            traffic=tuple(
                p.Traffic(f"model-{n}", 1, 1.0, rate=20.0 + n, errors=0.0, p95=0.02) for n in range(deployments)
            ),
        )
    return made
