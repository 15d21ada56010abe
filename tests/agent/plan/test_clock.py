"""Nothing that is planned hangs on the wall clock, and what another boot has left behind is taken for long ago."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from quarterdeck_agent.counts import counts_wanted, next_start, recent_crashes, warm_left
from quarterdeck_agent.drivers.base import Resources
from quarterdeck_agent.status import Facts, deployment_status
from quarterdeck_agent.wanted import Instant, WantedDeployment
from tests.agent.plan.world import BOOT, World, deploying, revision, serving

OTHER = "another boot"
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def upgraded() -> World:
    """A host whose old revision is warm since a moment ago."""
    return deploying(serving(warm=600.0), revision(2, warm=600.0)).run()


def of_boot(d: WantedDeployment, boot: str) -> WantedDeployment:
    assert d.replaced_at is not None
    return replace(d, replaced_at=replace(d.replaced_at, boot_id=boot))


def test_a_warm_revision_is_as_warm_whatever_the_wall_clock_says() -> None:
    world = upgraded()
    facts = Facts("http://x/m", "/", NOON, "somebody", "process")
    left = []
    for wall in (NOON, NOON + timedelta(days=365), NOON - timedelta(days=365)):
        status = deployment_status(world.d, world.seen(), facts, world.now, wall)
        assert status.warm_until is not None
        left.append(status.warm_until - wall)
    assert max(left) - min(left) == timedelta(0)
    assert left[0].total_seconds() == pytest.approx(warm_left(world.d, world.seen(), world.now), abs=1)


def test_after_another_boot_nothing_is_warm_and_the_live_revision_is_wanted_all_the_same() -> None:
    world = upgraded()
    assert warm_left(world.d, world.seen(), world.now) > 0
    world.d = of_boot(world.d, OTHER)
    assert warm_left(world.d, world.seen(), world.now) == 0
    assert set(counts_wanted(world.d, world.seen(), world.now)) == {"body-2"}
    world.replicas.clear()
    world.run()
    assert world.running("body-2") == 1
    assert world.d.previous is None


def test_back_off_counts_from_this_boot_only_even_when_its_clock_stands_lower() -> None:
    crashed = revision(1, crashes=tuple(Instant(OTHER, 1e6 + n) for n in range(4)))
    assert recent_crashes(crashed, BOOT, 5.0) == ()
    assert next_start(crashed, BOOT, 5.0) == 0.0
    again = replace(crashed, crashes=(*crashed.crashes, Instant(BOOT, 4.0)))
    assert 4.0 < next_start(again, BOOT, 5.0) <= 5.0


def test_a_hold_that_a_reboot_cut_off_goes_through_once_the_memory_is_there() -> None:
    world = deploying(serving(warm=0.0), revision(2, handover="hold", warm=0.0))
    world.asks = Resources(memory=2**30)
    world.d = replace(world.d, holding=True, holding_since=Instant(OTHER, 1e6))
    world.replicas.clear()
    world.run()
    assert world.d.live is not None and world.d.live.number == 2
    assert not world.d.holding
