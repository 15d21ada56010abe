"""Fixtures of the engine tests: a rig for each kind of engine, emptied after the test whatever happened."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images
from tests.agent.engines.rigs import DockerRig, ProcessRig, Rig, SimulatedRig, clear


@pytest.fixture(scope="session")
def busybox() -> Iterator[str]:
    """The id of a busybox image that was never in a registry."""
    with images.busybox_image() as tag:
        yield images.docker("inspect", "-f", "{{.Id}}", tag)


@pytest.fixture
def process_rig(tmp_path: Path) -> Iterator[ProcessRig]:
    rig = ProcessRig(tmp_path, uuid.uuid4().hex)
    yield rig
    asyncio.run(clear(rig.engine()))


@pytest.fixture
def docker_rig(tmp_path: Path, busybox: str) -> Iterator[DockerRig]:
    rig = DockerRig(tmp_path, uuid.uuid4().hex, busybox)
    yield rig
    rig.clear()


@pytest.fixture(params=["simulated", "process", pytest.param("docker", marks=pytest.mark.docker)])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    if request.param == "simulated":
        return SimulatedRig(tmp_path, uuid.uuid4().hex)
    made: Rig = request.getfixturevalue(f"{request.param}_rig")
    return made


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def real_rig(request: pytest.FixtureRequest) -> Rig:
    """A rig whose engine runs programs."""
    made: Rig = request.getfixturevalue(f"{request.param}_rig")
    return made
