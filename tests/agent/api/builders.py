"""Builders of wire values with defaults."""

from __future__ import annotations

from datetime import UTC, datetime

from quarterdeck_agent.protocol import DeploymentState, DeploymentStatus, HostInfo, Part, PartState

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def host_info() -> HostInfo:
    return HostInfo(
        name="cpu-1",
        instance="0" * 32,
        agent_version="0.1.0",
        os="Debian GNU/Linux 12",
        kernel="6.1",
        architecture="x86_64",
        cpus=2,
        memory_total=8 * 2**30,
        boot_id="boot",
        started_at=NOON,
        engine="simulated",
        gateway_url="http://127.0.0.1:8080",
        data_folder="/var/lib/quarterdeck",
    )


def part(name: str = "engine", state: PartState = PartState.OK) -> Part:
    return Part(name, state, NOON)


def deployment(name: str = "there") -> DeploymentStatus:
    return DeploymentStatus(
        name=name,
        generation=3,
        state=DeploymentState.SERVING,
        summary="serving",
        wanted_revision=1,
        live_revision=1,
        label="digits:1",
        version="0" * 64,
        replicas_wanted=1,
        replicas_ready=1,
        endpoint=f"http://127.0.0.1:8080/{name}",
        predict_path="/predict",
        since=NOON,
        by="ada",
    )
