"""What is remembered of a GPU lasts over an agent's restart, and ends with the boot, the driver, or a word of trust."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from quarterdeck_agent.drivers.gpu_driver import load_id
from quarterdeck_agent.drivers.nvml_seen import NvmlEvent, NvmlSeen
from quarterdeck_agent.gpus.records import GpuRecords, Judged
from quarterdeck_agent.gpus.xids import load_xids
from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuHealth, GpuUse, PartState
from quarterdeck_agent.store import NewOperation, Store

AT = datetime(2026, 11, 23, 13, 58, tzinfo=UTC)
GPUS = (Gpu(0, "GPU-a", "H", memory_total=80 << 30), Gpu(1, "GPU-b", "H", memory_total=80 << 30))


class Hands:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.boot_id, self.seconds = "boot-1", 1000.0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> datetime:
        return AT + timedelta(seconds=self.seconds - 1000)


class Host:
    """A store, a clock and a driver; `agent()` is a fresh start of the agent's part that judges."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.module = Hands(), "1"
        self.store = Store.open(folder / "store.sqlite", folder / "backups", self.clock)
        self.agent()

    def agent(self) -> None:
        self.records = GpuRecords(self.store, load_xids(), self.clock, lambda: self.module)

    def read(
        self,
        *xids: int,
        on: str = "GPU-a",
        gpus: tuple[Gpu, ...] = GPUS,
        errors: int = 0,
        state: PartState = PartState.OK,
        version: str = "575",
        use: tuple[GpuUse, ...] = (),
    ) -> Judged:
        self.clock.seconds += 1
        events = tuple(NvmlEvent(on, "xid", code, self.clock.wall()) for code in xids)
        facts = tuple(GpuFacts(gpu.uuid, ecc_uncorrected=errors if gpu.uuid == "GPU-a" else 0) for gpu in gpus)
        seen = NvmlSeen(state, "", version, gpus, facts, events=events)
        return asyncio.run(self.records.judged(seen, use))

    def trust(self, uuid: str = "GPU-a", errors: int = 0, operation: str = "op-1") -> None:
        self.clock.seconds += 1
        self.store.trust_gpu(uuid, errors, NewOperation(operation, "trust-gpu", uuid, "ada"))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.store.close()


def health(judged: Judged) -> list[GpuHealth]:
    return [gpu.health for gpu in judged.gpus]


WELL, SICK = GpuHealth.OK, GpuHealth.SICK


def test_an_xid_makes_its_gpu_sick_and_shows_in_its_facts(host: Host) -> None:
    judged = host.read(79)
    assert health(judged) == [SICK, WELL]
    assert "fell off the bus" in judged.gpus[0].why
    assert [xid.code for xid in judged.facts[0].xids] == [79]
    assert judged.facts[1].xids == ()


def test_it_stays_so_when_the_agent_starts_anew(host: Host) -> None:
    host.read(79)
    host.agent()
    judged = host.read()
    assert health(judged) == [SICK, WELL]
    assert [(xid.code, xid.at) for xid in judged.facts[0].xids] == [(79, AT + timedelta(seconds=1))]


def test_a_new_boot_clears_it(host: Host) -> None:
    host.read(79)
    host.clock.boot_id = "boot-2"
    host.agent()
    assert health(host.read()) == [WELL, WELL]
    host.agent()
    assert health(host.read()) == [WELL, WELL]


@pytest.mark.parametrize("restart", [False, True])
def test_a_driver_that_was_loaded_anew_clears_it(host: Host, restart: bool) -> None:
    host.read(95)
    host.module = "2"
    if restart:
        host.agent()
    assert health(host.read()) == [WELL, WELL]
    assert host.store.gpu_memories()["GPU-a"].xids == ()


def test_a_driver_that_had_gone_in_between_clears_it(host: Host) -> None:
    host.read(95)
    host.read(state=PartState.ABSENT, gpus=())
    assert health(host.read()) == [WELL, WELL]
    host.agent()
    assert health(host.read()) == [WELL, WELL]


def test_a_driver_that_hangs_for_a_while_clears_nothing(host: Host) -> None:
    host.read(95)
    silent = tuple(replace(gpu, health=GpuHealth.DEGRADED, memory_total=None, why="no answer") for gpu in GPUS)
    for _ in range(60):
        judged = host.read(state=PartState.UNRESPONSIVE, gpus=silent)
    assert health(judged) == [SICK, GpuHealth.DEGRADED]
    assert judged.gpus[1].why == "no answer"
    assert health(host.read()) == [SICK, WELL]


def test_a_gpu_that_is_lost_does_not_make_the_agent_forget_why(host: Host) -> None:
    lost = (replace(GPUS[0], health=GpuHealth.LOST, memory_total=None, why="fell off the bus"), GPUS[1])
    host.read(79)
    host.agent()
    judged = host.read(gpus=lost, state=PartState.FAILED)
    assert health(judged) == [GpuHealth.LOST, WELL]
    assert judged.gpus[0].why.startswith("Xid 79")


def test_one_gpu_that_is_silent_for_long_while_others_answer_is_lost(host: Host) -> None:
    silent = (replace(GPUS[0], health=GpuHealth.DEGRADED, memory_total=None, why="no answer for 5 s"), GPUS[1])
    assert health(host.read(gpus=silent, state=PartState.UNRESPONSIVE)) == [GpuHealth.DEGRADED, WELL]
    for _ in range(15):
        judged = host.read(gpus=silent, state=PartState.UNRESPONSIVE)
    assert health(judged) == [GpuHealth.LOST, WELL]
    assert judged.gpus[0].why == "no answer for 5 s"
    assert health(host.read()) == [WELL, WELL]


def test_trust_clears_what_was_and_lasts_over_a_restart(host: Host) -> None:
    host.read(95, errors=2)
    host.trust(errors=2)
    assert health(host.read(errors=2)) == [WELL, WELL]
    host.agent()
    assert health(host.read(errors=2)) == [WELL, WELL]
    assert health(host.read(95, errors=2)) == [SICK, WELL]
    host.agent()
    assert health(host.read(errors=2)) == [SICK, WELL]


def test_trust_given_while_no_agent_looks_counts_at_the_next_start(host: Host) -> None:
    host.read(95)
    host.agent()
    host.trust()
    assert health(host.read()) == [WELL, WELL]


def test_memory_errors_after_a_reset_count_although_as_many_were_trusted_away_before(host: Host) -> None:
    host.read(errors=2)
    host.trust(errors=2)
    host.read(errors=2)
    host.read(errors=0)
    host.agent()
    assert health(host.read(errors=2)) == [SICK, WELL]


def test_what_was_trusted_away_under_another_driver_does_not_count_for_this_one(host: Host) -> None:
    host.read(errors=2)
    host.trust(errors=2)
    host.read(errors=2)
    host.module = "2"
    host.agent()
    assert health(host.read(errors=1)) == [SICK, WELL]


def test_a_mig_instance_is_no_better_than_the_gpu_it_is_cut_from(host: Host) -> None:
    gpus = (replace(GPUS[0], mig=True), Gpu(0, "MIG-1", "H MIG", parent="GPU-a"), GPUS[1])
    judged = host.read(95, on="MIG-1", gpus=gpus)
    assert health(judged) == [SICK, SICK, WELL]
    assert judged.gpus[0].why == judged.gpus[1].why
    host.agent()
    assert health(host.read(gpus=gpus)) == [SICK, SICK, WELL]


def test_a_flood_of_one_xid_is_written_once(host: Host) -> None:
    host.read()
    writes = host.store.writes
    for _ in range(30):
        host.read(31, 31)
    assert host.store.writes == writes + 1


def test_nothing_is_written_while_all_is_well(host: Host) -> None:
    host.read()
    writes = host.store.writes
    for _ in range(5):
        host.read()
    assert host.store.writes == writes


def test_one_load_of_the_driver_is_told_from_the_next_by_the_kernel(tmp_path: Path) -> None:
    assert load_id(tmp_path / "nvidia") == ""
    (tmp_path / "nvidia").mkdir()
    first = load_id(tmp_path / "nvidia")
    (tmp_path / "other").mkdir()
    assert first and first == load_id(tmp_path / "nvidia") != load_id(tmp_path / "other")
