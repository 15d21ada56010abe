"""Metrics of our own about GPUs: whose memory it is, what is claimed, and how each GPU is.

What DCGM has a name for is told under that too, see `dcgm`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from quarterdeck_agent.gpus.placement import Claim
from quarterdeck_agent.protocol import Gpu, GpuHealth, GpuUse, HostStatus, Revision

PREFIX = "quarterdeck_"
GPU = ("gpu", "uuid", "name")
OWNER = ("deployment", "revision", "replica")

Labels = tuple[str, str, str]
Row = tuple[tuple[str, ...], float | int | None]


def gauge(name: str, text: str, labels: tuple[str, ...], rows: Iterable[Row]) -> Iterator[Metric]:
    """One family of those `rows` that have a value; nothing where none has."""
    measured = [(values, value) for values, value in rows if value is not None]
    if measured:
        family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
        for values, value in measured:
            family.add_metric(values, value)
        yield family


def collect(status: HostStatus, revisions: Iterable[Revision], claims: Iterable[Claim]) -> Iterator[Metric]:
    """Everything about the GPUs of `status`."""
    labels = {gpu.uuid: (str(gpu.index), gpu.uuid, gpu.name) for gpu in status.gpus}
    keyed = [(labels[gpu.uuid], gpu) for gpu in status.gpus]
    yield from _gauges(keyed)
    yield from _health(keyed)
    yield from _links(status, labels)
    uses = [(labels[use.uuid], use) for use in status.gpu_uses if use.uuid in labels]
    yield from _use(uses)
    yield from _claims(status, labels, claims)
    peaks: list[Row] = [((r.deployment, str(r.number)), r.gpu_memory_peak) for r in revisions]
    text = "Most GPU memory that one replica of a revision was seen to hold on one GPU."
    yield from gauge("revision_gpu_memory_peak_bytes", text, OWNER[:2], peaks)


def _gauges(keyed: list[tuple[Labels, Gpu]]) -> Iterator[Metric]:
    for name, text, rows in (
        ("gpu_utilisation_ratio", "Time with work on the GPU, 0 to 1.", [(k, g.utilisation) for k, g in keyed]),
        ("gpu_memory_total_bytes", "Memory of the GPU.", [(k, g.memory_total) for k, g in keyed]),
        ("gpu_memory_used_bytes", "Memory in use.", [(k, g.memory_used) for k, g in keyed]),
        ("gpu_memory_free_bytes", "Memory that is free.", [(k, g.memory_free) for k, g in keyed]),
        ("gpu_temperature_celsius", "Temperature.", [(k, g.temperature) for k, g in keyed]),
        ("gpu_power_watts", "Power drawn.", [(k, g.power) for k, g in keyed]),
        ("gpu_power_limit_watts", "Power allowed.", [(k, g.power_limit) for k, g in keyed]),
    ):
        yield from gauge(name, text, GPU, rows)


def _health(keyed: list[tuple[Labels, Gpu]]) -> Iterator[Metric]:
    states: list[Row] = [((*k, state), int(g.health == state)) for k, g in keyed for state in GpuHealth]
    yield from gauge("gpu_health", "1 for the state that a GPU is in, 0 for the others.", (*GPU, "state"), states)
    throttled: list[Row] = [((*k, reason), 1) for k, g in keyed for reason in g.throttle]
    yield from gauge("gpu_throttled", "1 for each reason why a GPU is slowed down.", (*GPU, "reason"), throttled)


def _links(status: HostStatus, labels: dict[str, Labels]) -> Iterator[Metric]:
    links: list[Row] = [
        ((*labels[facts.uuid], str(link.link), link.peer or ""), int(link.active))
        for facts in status.gpu_facts
        if facts.uuid in labels
        for link in facts.nvlinks
    ]
    yield from gauge("gpu_nvlink_up", "Whether an NVLink is up (1) or not (0).", (*GPU, "link", "peer"), links)


def _use(uses: list[tuple[Labels, GpuUse]]) -> Iterator[Metric]:
    """Memory by owner. A replica of which a process does not tell its memory is left out: its sum would be wrong."""
    owned: dict[tuple[str, ...], list[int | None]] = defaultdict(list)
    unmanaged: list[Row] = []
    for labels, use in uses:
        others = [process.memory for process in use.processes if process.replica is None]
        unmanaged.append((labels, _sum(others)))
        for process in use.processes:
            if process.replica is not None:
                owner = process.deployment or "", "" if process.revision is None else str(process.revision)
                owned[(*labels, *owner, process.replica)].append(process.memory)
    rows: list[Row] = [(labels, _sum(sizes)) for labels, sizes in owned.items()]
    yield from gauge("replica_gpu_memory_bytes", "Memory of a GPU that a replica holds.", (*GPU, *OWNER), rows)
    text = "Memory of a GPU held by processes that are no replica's."
    yield from gauge("gpu_memory_unmanaged_bytes", text, GPU, unmanaged)
    text = "Memory of a GPU in use that belongs to no process."
    yield from gauge("gpu_memory_unexplained_bytes", text, GPU, [(labels, use.unexplained) for labels, use in uses])


def _claims(status: HostStatus, labels: dict[str, Labels], claims: Iterable[Claim]) -> Iterator[Metric]:
    """What each replica claims; of a device that it claims whole, all of its memory."""
    sizes = {gpu.uuid: gpu.memory_total for gpu in status.gpus}
    owners = {r.id: (r.deployment, str(r.revision)) for d in status.deployments for r in d.replicas}
    rows: list[Row] = [
        (
            (*labels[claim.uuid], *owners.get(claim.replica, (claim.deployment, "")), claim.replica),
            sizes[claim.uuid] if claim.size is None else claim.size,
        )
        for claim in claims
        if claim.uuid in labels
    ]
    yield from gauge("replica_gpu_claimed_bytes", "Memory of a GPU that a replica claims.", (*GPU, *OWNER), rows)


def _sum(sizes: Iterable[int | None]) -> int | None:
    total = 0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total
