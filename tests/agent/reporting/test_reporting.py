"""What the board is told of rollouts, over a real store; the host is pretended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quarterdeck_agent.board import Board
from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.drivers.base import GatewaySeen
from quarterdeck_agent.errors import NotFound
from quarterdeck_agent.protocol import DeploymentState, Gpu, GpuHealth
from quarterdeck_agent.reporting import Reporter
from quarterdeck_agent.seen import Seen
from quarterdeck_agent.store import Store
from quarterdeck_agent.wanted import Instant, WantedRevision
from tests.agent.api.builders import host_info
from tests.agent.plan.world import seen_replica
from tests.agent.store.making import deploy

CLOCK = SystemClock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "store.sqlite", tmp_path / "backups", CLOCK)
    yield opened
    opened.close()


def unknown(_: WantedRevision) -> Any:
    raise NotFound("there is no runtime mine on this host")


def reporter(store: Store, board: Board) -> Reporter:
    observer: Any = SimpleNamespace(parts={})
    return Reporter(board, store, observer, unknown, CLOCK, "http://127.0.0.1:8080", "process")


def publish(store: Store, told: Reporter, *staged: str) -> None:
    seen = Seen(CLOCK.boot_id, gateway=GatewaySeen("x"), staged=frozenset(staged))
    asyncio.run(told.publish(store.wanted(), seen))


def test_steps_that_an_earlier_agent_recorded_are_kept_and_the_one_it_was_in_goes_on(store: Store) -> None:
    operation = deploy(store, "one").id
    publish(store, reporter(store, Board(host_info())))
    (first,) = store.operation(operation).steps
    assert (first.name, first.state) == ("stage", "running")
    again = reporter(store, Board(host_info()))
    publish(store, again)
    assert store.operation(operation).steps == (first,), "it is still the same step"
    store.set_image("digits", 1, "")
    publish(store, again, "a" * 64)
    done, second = store.operation(operation).steps
    assert (done.name, done.state, done.started_at) == ("stage", "done", first.started_at)
    assert (second.name, second.state) == ("start", "running")


def test_a_deployment_whose_runtime_is_gone_is_still_told(store: Store) -> None:
    deploy(store, "one")
    board = Board(host_info())
    publish(store, reporter(store, board))
    (status,) = board.status().deployments
    assert (status.name, status.predict_path) == ("digits", "/")


def test_a_deployment_that_serves_is_looked_at_again_when_its_gpu_gets_sick(store: Store) -> None:
    deploy(store, "one")
    store.set_image("digits", 1, "")
    store.promote("digits", 1, Instant(CLOCK.boot_id, CLOCK.now()))
    board = Board(host_info())
    told = reporter(store, board)
    body = store.wanted().deployments[0].target.body
    there = seen_replica("digits-1-0", body)
    there = replace(there, found=replace(there.found, deployment="digits", gpus=("GPU-a",)))
    gpu = Gpu(0, "GPU-a", "H100", memory_total=1, memory_free=1)
    well = Seen(CLOCK.boot_id, (there,), gateway=GatewaySeen("x"), gpus=(gpu,))
    sick = replace(gpu, health=GpuHealth.SICK, why="Xid 79")
    for seen, state in (
        (well, DeploymentState.SERVING),
        (replace(well, gpus=(sick,), ailing=frozenset({"GPU-a"})), DeploymentState.DEGRADED),
        (well, DeploymentState.SERVING),
    ):
        asyncio.run(told.publish(store.wanted(), seen))
        (status,) = board.status().deployments
        assert status.state is state
