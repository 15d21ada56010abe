"""A host's figures in Prometheus' text format, made afresh from what the board shows. It measures nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from quarterdeck_agent.protocol import DeploymentStatus, HostStatus, PartState, ReplicaState

PREFIX = "quarterdeck_"
Row = tuple[tuple[str, ...], float | int | None]


def exposition(status: HostStatus) -> bytes:
    """`status` in text exposition format 0.0.4. What was not measured is left out, never 0."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StatusCollector(status))
    return generate_latest(registry)


class _StatusCollector(Collector):
    """Gives one host's status as metrics. `describe` is empty, so that registering does not collect."""

    def __init__(self, status: HostStatus) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield _info(self._status)
        yield from _host(self._status)
        yield from _parts(self._status)
        yield from _deployments(self._status.deployments)
        yield from _traffic(self._status)
        yield from _replicas(self._status)
        yield from _gpus(self._status)


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: Iterable[Row]) -> Iterator[Metric]:
    measured = [(values, value) for values, value in rows if value is not None]
    if measured:
        family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
        for values, value in measured:
            family.add_metric(values, value)
        yield family


def _info(status: HostStatus) -> Metric:
    info = InfoMetricFamily(PREFIX + "agent", "The agent and its host.")
    labels = {"version": status.info.agent_version, "host": status.info.name, "engine": status.info.engine}
    info.add_metric((), labels)
    return info


def _host(status: HostStatus) -> Iterator[Metric]:
    gauges = status.gauges
    yield from _gauge("host_cpus", "Cores of the host.", (), [((), status.info.cpus)])
    if gauges is None:
        return
    for name, text, value in (
        ("host_cpu_ratio", "Share of all cores in use, 0 to 1.", gauges.cpu),
        ("host_load1", "Load average over one minute.", gauges.load1),
        ("host_memory_total_bytes", "Memory of the host.", gauges.memory_total),
        ("host_memory_used_bytes", "Memory that new work could not have.", gauges.memory_used),
        ("host_disk_total_bytes", "Size of the disk that holds the data folder.", gauges.disk_total),
        ("host_disk_used_bytes", "Of it, what is in use.", gauges.disk_used),
        ("agent_memory_bytes", "Resident memory of the agent.", gauges.agent_memory),
        ("agent_cpu_cores", "Cores the agent uses.", gauges.agent_cpu),
    ):
        yield from _gauge(name, text, (), [((), value)])


def _parts(status: HostStatus) -> Iterator[Metric]:
    rows: list[Row] = [((part.name, part.state), int(part.state is PartState.OK)) for part in status.parts]
    yield from _gauge("part_up", "Whether a part of the host is well (1) or not (0).", ("part", "state"), rows)


def _deployments(deployments: Iterable[DeploymentStatus]) -> Iterator[Metric]:
    shown = tuple(deployments)
    state: list[Row] = [((d.name, d.state), 1) for d in shown]
    yield from _gauge("deployment_state", "1 for the state a deployment is in.", ("deployment", "state"), state)
    label: list[Row] = [((d.name, d.label, d.version[:12]), 1) for d in shown]
    yield from _gauge("deployment_version", "1 for the version served.", ("deployment", "label", "version"), label)
    for name, text, rows in (
        ("deployment_replicas_wanted", "Replicas asked for.", [((d.name,), d.replicas_wanted) for d in shown]),
        ("deployment_replicas_ready", "Replicas that are ready.", [((d.name,), d.replicas_ready) for d in shown]),
        ("deployment_revision", "The revision that is served.", [((d.name,), d.live_revision) for d in shown]),
    ):
        yield from _gauge(name, text, ("deployment",), rows)


def _traffic(status: HostStatus) -> Iterator[Metric]:
    labels = ("deployment", "revision")
    keyed = [((t.deployment, str(t.revision)), t) for t in status.traffic]
    for name, text, rows in (
        ("traffic_weight", "Share of new requests a revision is given.", [(k, t.weight) for k, t in keyed]),
        ("requests_per_second", "Requests answered.", [(k, t.rate) for k, t in keyed]),
        ("errors_per_second", "Requests answered with 5xx.", [(k, t.errors) for k, t in keyed]),
        ("requests_active", "Requests in flight at replicas.", [(k, t.active) for k, t in keyed]),
        ("requests_held", "Requests that wait for a replica.", [(k, t.held) for k, t in keyed]),
    ):
        yield from _gauge(name, text, labels, rows)
    quantiles: list[Row] = []
    for key, t in keyed:
        quantiles += [((*key, "0.5"), t.p50), ((*key, "0.95"), t.p95), ((*key, "0.99"), t.p99)]
    yield from _gauge("latency_seconds", "Latency since the last sample.", (*labels, "quantile"), quantiles)


def _replicas(status: HostStatus) -> Iterator[Metric]:
    labels = ("deployment", "revision", "replica")
    keyed = [((g.deployment, str(g.revision), g.replica), g) for g in status.replica_gauges]
    for name, text, rows in (
        ("replica_cpu_cores", "Cores in use.", [(k, g.cpu) for k, g in keyed]),
        (
            "replica_memory_bytes",
            "Memory in use, without cache that can be given back.",
            [(k, g.memory) for k, g in keyed],
        ),
        ("replica_memory_limit_bytes", "Memory allowed.", [(k, g.memory_limit) for k, g in keyed]),
        ("replica_processes", "Processes and threads as the cgroup counts them.", [(k, g.processes) for k, g in keyed]),
    ):
        yield from _gauge(name, text, labels, rows)
    replicas = [replica for d in status.deployments for replica in d.replicas]
    owners = [((r.deployment, str(r.revision), r.id), r) for r in replicas]
    ready: list[Row] = [(key, int(r.state is ReplicaState.READY)) for key, r in owners]
    yield from _gauge("replica_ready", "Whether a replica is ready.", labels, ready)
    yield from _gauge("replica_restarts", "Ends nobody asked for.", labels, [(k, r.restarts) for k, r in owners])


def _gpus(status: HostStatus) -> Iterator[Metric]:
    labels = ("gpu", "uuid", "name")
    keyed = [((str(g.index), g.uuid, g.name), g) for g in status.gpus]
    for name, text, rows in (
        (
            "gpu_utilisation_ratio",
            "Share of time with work on the GPU, 0 to 1.",
            [(k, g.utilisation) for k, g in keyed],
        ),
        ("gpu_memory_total_bytes", "Memory of the GPU.", [(k, g.memory_total) for k, g in keyed]),
        ("gpu_memory_used_bytes", "Memory in use.", [(k, g.memory_used) for k, g in keyed]),
        ("gpu_temperature_celsius", "Temperature.", [(k, g.temperature) for k, g in keyed]),
        ("gpu_power_watts", "Power drawn.", [(k, g.power) for k, g in keyed]),
        ("gpu_power_limit_watts", "Power allowed.", [(k, g.power_limit) for k, g in keyed]),
    ):
        yield from _gauge(name, text, labels, rows)
