"""A host's figures in Prometheus' text format, made afresh from what the board shows. It measures nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from quarterdeck_agent.gpus import dcgm
from quarterdeck_agent.gpus import metrics as gpu_metrics
from quarterdeck_agent.gpus.metrics import PREFIX, Row, gauge
from quarterdeck_agent.gpus.placement import Claim
from quarterdeck_agent.protocol import DeploymentStatus, HostStatus, PartState, ReplicaState, Revision


def exposition(status: HostStatus, revisions: Iterable[Revision] = (), claims: Iterable[Claim] = ()) -> bytes:
    """`status` in text exposition format 0.0.4. What was not measured is left out, never 0.

    `revisions` tell the peaks of their replicas, `claims` what was promised of the GPUs.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StatusCollector(status, tuple(revisions), tuple(claims)))
    return generate_latest(registry) + dcgm.exposition(status).encode()


class _StatusCollector(Collector):
    """Gives one host's status as metrics. `describe` is empty, so that registering does not collect."""

    def __init__(self, status: HostStatus, revisions: tuple[Revision, ...], claims: tuple[Claim, ...]) -> None:
        self._status, self._revisions, self._claims = status, revisions, claims

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield _info(self._status)
        yield from _host(self._status)
        yield from _parts(self._status)
        yield from _deployments(self._status.deployments)
        yield from _traffic(self._status)
        yield from _replicas(self._status)
        yield from gpu_metrics.collect(self._status, self._revisions, self._claims)


def _info(status: HostStatus) -> Metric:
    info = InfoMetricFamily(PREFIX + "agent", "The agent and its host.")
    labels = {"version": status.info.agent_version, "host": status.info.name, "engine": status.info.engine}
    info.add_metric((), labels)
    return info


def _host(status: HostStatus) -> Iterator[Metric]:
    gauges = status.gauges
    yield from gauge("host_cpus", "Cores of the host.", (), [((), status.info.cpus)])
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
        yield from gauge(name, text, (), [((), value)])


def _parts(status: HostStatus) -> Iterator[Metric]:
    rows: list[Row] = [((part.name, part.state), int(part.state is PartState.OK)) for part in status.parts]
    yield from gauge("part_up", "Whether a part of the host is well (1) or not (0).", ("part", "state"), rows)


def _deployments(deployments: Iterable[DeploymentStatus]) -> Iterator[Metric]:
    shown = tuple(deployments)
    state: list[Row] = [((d.name, d.state), 1) for d in shown]
    yield from gauge("deployment_state", "1 for the state a deployment is in.", ("deployment", "state"), state)
    label: list[Row] = [((d.name, d.label, d.version[:12]), 1) for d in shown]
    yield from gauge("deployment_version", "1 for the version served.", ("deployment", "label", "version"), label)
    for name, text, rows in (
        ("deployment_replicas_wanted", "Replicas asked for.", [((d.name,), d.replicas_wanted) for d in shown]),
        ("deployment_replicas_ready", "Replicas that are ready.", [((d.name,), d.replicas_ready) for d in shown]),
        ("deployment_revision", "The revision that is served.", [((d.name,), d.live_revision) for d in shown]),
    ):
        yield from gauge(name, text, ("deployment",), rows)


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
        yield from gauge(name, text, labels, rows)
    quantiles: list[Row] = []
    for key, t in keyed:
        quantiles += [((*key, "0.5"), t.p50), ((*key, "0.95"), t.p95), ((*key, "0.99"), t.p99)]
    yield from gauge("latency_seconds", "Latency since the last sample.", (*labels, "quantile"), quantiles)


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
        yield from gauge(name, text, labels, rows)
    replicas = [replica for d in status.deployments for replica in d.replicas]
    owners = [((r.deployment, str(r.revision), r.id), r) for r in replicas]
    ready: list[Row] = [(key, int(r.state is ReplicaState.READY)) for key, r in owners]
    yield from gauge("replica_ready", "Whether a replica is ready.", labels, ready)
    yield from gauge("replica_restarts", "Ends nobody asked for.", labels, [(k, r.restarts) for k, r in owners])
