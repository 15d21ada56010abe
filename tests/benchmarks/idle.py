"""What an agent costs that has nothing to do: CPU and memory with twenty replicas, beside one that has none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.figures import Figure
from tests.benchmarks.hosts import ask, cpu_seconds, finished, memory
from tests.end_to_end.rig import Agent, agent, until
from tests.models import trivial_bundle

REPLICAS = 20
SECONDS = 60.0
SETTLE = 8.0
"""Seconds after the last change before anything is measured: probes and lists go at their idle pace by then."""


def measure(folder: Path) -> Sequence[Figure]:
    """Both agents over the same minute."""
    with ExitStack() as ending:
        bare = ending.enter_context(agent(folder / "a"))
        one = ending.enter_context(agent(folder / "b"))
        many = ending.enter_context(agent(folder / "c"))
        for host in (one, many):
            host.must("push", str(trivial_bundle(folder / "tiny", "tiny", "1")))
        _deploy(one, ["tiny"], REPLICAS)
        _deploy(many, [f"tiny{number}" for number in range(REPLICAS)], 1)
        time.sleep(SETTLE)
        agents = (bare, one, many)
        before = [cpu_seconds(each.pid) for each in agents]
        began = time.monotonic()
        time.sleep(SECONDS)
        elapsed = time.monotonic() - began
        used = [(cpu_seconds(each.pid) - was) / elapsed * 100 for each, was in zip(agents, before, strict=True)]
        resident = [memory(each.pid) for each in agents]
        for host in (one, many):
            _all_ready(host)
    against = f"an agent without deployments: {used[0]:.2f} %, {resident[0]:.0f} MiB"
    one_name, many_name = f"one deployment of {REPLICAS} replicas", f"{REPLICAS} deployments of one replica"
    return [
        Figure(f"idle agent, {one_name}: CPU", used[1], "% of a core", at_most=1.0, baseline=against),
        Figure(f"idle agent, {one_name}: memory", resident[1], "MiB", at_most=110, baseline=against),
        Figure(f"idle agent, {many_name}: CPU", used[2], "% of a core", at_most=1.0, baseline=against),
        Figure(f"idle agent, {many_name}: memory", resident[2], "MiB", at_most=110, baseline=against),
    ]


def _deploy(host: Agent, names: Sequence[str], replicas: int) -> None:
    asked = [
        ask(host, "PUT", f"/v1/deployments/{name}", {"version": "tiny:1", "replicas": replicas, "dwell": 0.0})
        for name in names
    ]
    for operation in asked:
        finished(host, operation)


def _all_ready(host: Agent) -> None:
    """What was measured counts only if all replicas were there until the end."""

    def ready() -> bool:
        _, status = host.api("GET", "/v1/status")
        return bool(sum(d["replicas_ready"] for d in status["deployments"]) == REPLICAS)

    until(ready, f"all {REPLICAS} replicas are ready", 5)
