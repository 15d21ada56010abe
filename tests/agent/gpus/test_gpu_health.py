"""How far a GPU can be trusted, and the sentence that says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from quarterdeck_agent.gpus.health import KEEP_XIDS, Record, judge, observe, trusted
from quarterdeck_agent.gpus.xids import load_xids
from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuHealth, GpuProcess, GpuUse, XidEvent

AT = datetime(2026, 11, 23, 13, 58, tzinfo=UTC)
GPU = Gpu(0, "GPU-a", "H", memory_total=80 << 30, memory_used=0, temperature=60.0, clock_graphics=1900, power_limit=300)
FACTS = GpuFacts("GPU-a", temperature_slowdown=90.0, clock_graphics_max=2000, ecc_uncorrected=0)
USE = GpuUse("GPU-a", (), 0)
CATALOGUE = load_xids()


def xid(code: int, minutes: int = 0) -> XidEvent:
    return CATALOGUE.event(code, AT + timedelta(minutes=minutes))


class Watch:
    """One GPU, sampled once a second."""

    def __init__(self) -> None:
        self.now, self.record = 1000.0, Record()

    def sample(
        self,
        gpu: Gpu = GPU,
        facts: GpuFacts | None = FACTS,
        use: GpuUse | None = USE,
        events: Sequence[XidEvent] = (),
        seconds: int = 1,
    ) -> tuple[GpuHealth, str]:
        for _ in range(seconds):
            self.now += 1
            self.record = observe(self.record, gpu, facts, use, events, self.now)
            events = ()
        return judge(gpu, facts, use, self.record)


def test_a_gpu_of_which_nothing_bad_is_known_is_well_and_needs_no_words() -> None:
    assert Watch().sample(seconds=120) == (GpuHealth.OK, "")
    assert Watch().sample(Gpu(0, "GPU-a", "H"), None, None) == (GpuHealth.OK, "")


@pytest.mark.parametrize(
    ("code", "health", "mend"),
    [
        (31, GpuHealth.OK, ""),
        (43, GpuHealth.OK, ""),
        (4711, GpuHealth.DEGRADED, "ask the vendor's support"),
        (95, GpuHealth.SICK, "drain the GPU and reset it"),
        (79, GpuHealth.SICK, "drain the host and reboot"),
    ],
)
def test_an_xid_counts_as_its_class_says(code: int, health: GpuHealth, mend: str) -> None:
    found, why = Watch().sample(events=[xid(code)])
    assert found is health
    assert why.endswith(mend)


def test_the_words_say_what_was_when_and_what_to_do() -> None:
    _, why = Watch().sample(events=[xid(79)])
    assert why == "Xid 79 at 13:58 UTC on 23 Nov: the GPU fell off the bus; drain the host and reboot"


def test_a_lost_gpu_is_lost_for_the_reason_that_its_xid_tells() -> None:
    lost = replace(GPU, health=GpuHealth.LOST, memory_used=None, temperature=None)
    health, why = Watch().sample(lost, events=[xid(79)])
    assert health is GpuHealth.LOST
    assert why.startswith("Xid 79") and "does not answer" not in why
    health, why = Watch().sample(lost)
    assert health is GpuHealth.LOST and "drain the host and reboot" in why
    assert Watch().sample(replace(lost, why="no answer for 5 s")) == (GpuHealth.LOST, "no answer for 5 s")


def test_an_xid_stays_until_somebody_trusts_the_gpu_again_and_a_new_one_counts_again() -> None:
    watch = Watch()
    watch.sample(events=[xid(95)])
    assert watch.sample(seconds=3600)[0] is GpuHealth.SICK
    watch.record = trusted(watch.record, AT + timedelta(minutes=30), 0)
    assert watch.sample() == (GpuHealth.OK, "")
    assert watch.sample(events=[xid(95, minutes=31)])[0] is GpuHealth.SICK


def test_a_flood_of_harmless_xids_does_not_push_out_the_one_that_matters() -> None:
    watch = Watch()
    watch.sample(events=[xid(79)])
    for minute in range(100):
        watch.sample(events=[xid(31, 10 * minute), xid(31, 10 * minute)])
    assert watch.sample()[0] is GpuHealth.SICK
    assert len(watch.record.xids) == KEEP_XIDS + 1
    assert [x.at for x in watch.record.xids] == sorted((x.at for x in watch.record.xids), reverse=True)


def test_memory_errors_that_were_not_corrected_make_a_gpu_sick_until_they_are_trusted_away() -> None:
    watch = Watch()
    bad = replace(FACTS, ecc_uncorrected=2)
    assert watch.sample(facts=bad) == (
        GpuHealth.SICK,
        "2 memory errors that ECC could not correct; drain the GPU and reset it",
    )
    watch.record = trusted(watch.record, AT, 2)
    assert watch.sample(facts=bad) == (GpuHealth.OK, "")
    assert watch.sample(facts=replace(FACTS, ecc_uncorrected=3))[1].startswith("1 memory error that")
    watch.sample(facts=FACTS)  # the GPU was reset: it counts from zero again
    assert watch.sample(facts=replace(FACTS, ecc_uncorrected=1))[0] is GpuHealth.SICK


@pytest.mark.parametrize(
    ("facts", "health", "word"),
    [
        (replace(FACTS, remap_pending=True), GpuHealth.DEGRADED, "waits to be replaced"),
        (replace(FACTS, remap_failed=True), GpuHealth.SICK, "could not be replaced"),
        (replace(FACTS, retired_pending=True), GpuHealth.SICK, "waits to be retired"),
        (replace(FACTS, remap_pending=False, remap_failed=False, retired_pending=False), GpuHealth.OK, ""),
    ],
)
def test_faulty_memory_that_was_not_replaced_yet(facts: GpuFacts, health: GpuHealth, word: str) -> None:
    found, why = Watch().sample(facts=facts)
    assert found is health and word in why


def test_throttling_counts_when_it_lasts_and_not_at_a_blip() -> None:
    watch, slow = Watch(), replace(GPU, throttle=("hw_thermal",))
    assert watch.sample(slow, seconds=50)[0] is GpuHealth.OK
    assert watch.sample(GPU, seconds=20)[0] is GpuHealth.OK
    assert watch.sample(slow, seconds=50)[0] is GpuHealth.OK
    health, why = watch.sample(slow, seconds=15)
    assert health is GpuHealth.DEGRADED
    assert "hw_thermal" in why and "cooling" in why
    assert watch.sample(GPU, seconds=16) == (GpuHealth.OK, "")


def test_a_flag_that_flickers_has_gone_on_all_the_time() -> None:
    watch, slow = Watch(), replace(GPU, throttle=("thermal",))
    for _ in range(10):
        watch.sample(slow, seconds=3)
        watch.sample(GPU, seconds=4)
    assert watch.sample(slow)[0] is GpuHealth.DEGRADED


def test_a_power_limit_is_no_fault_before_it_costs_much() -> None:
    busy = replace(GPU, throttle=("power",))
    assert Watch().sample(busy, seconds=300) == (GpuHealth.OK, "")
    health, why = Watch().sample(replace(busy, clock_graphics=800), seconds=62)
    assert health is GpuHealth.DEGRADED
    assert "power limit of 300 W" in why


def test_heat_above_the_slowdown_limit_counts_after_a_moment() -> None:
    watch, hot = Watch(), replace(GPU, temperature=91.0)
    assert watch.sample(hot, seconds=5)[0] is GpuHealth.OK
    health, why = watch.sample(hot, seconds=10)
    assert (health, "90 °C" in why) == (GpuHealth.DEGRADED, True)


def test_memory_that_no_process_holds_is_leaked_after_a_while_and_its_size_is_told() -> None:
    watch, leaked = Watch(), GpuUse("GPU-a", (), 3 << 30)
    assert watch.sample(use=leaked, seconds=50)[0] is GpuHealth.OK
    health, why = watch.sample(use=leaked, seconds=15)
    assert health is GpuHealth.DEGRADED
    assert why.startswith("3.0 GiB of memory are in use by no process")
    assert watch.sample(seconds=20) == (GpuHealth.OK, "")


def test_a_little_memory_beside_processes_is_not_a_leak() -> None:
    beside = GpuUse("GPU-a", (GpuProcess(1, 1 << 30),), 512 << 20)
    assert Watch().sample(use=beside, seconds=100)[0] is GpuHealth.OK
    assert Watch().sample(use=replace(beside, unexplained=None), seconds=100)[0] is GpuHealth.OK
    assert Watch().sample(use=replace(beside, unexplained=2 << 30), seconds=100)[0] is GpuHealth.DEGRADED


def test_the_worst_comes_first() -> None:
    facts = replace(FACTS, remap_pending=True, ecc_uncorrected=1)
    health, why = Watch().sample(facts=facts, events=[xid(4711)])
    assert health is GpuHealth.SICK
    assert [why.index(word) for word in ("could not correct", "Xid 4711", "waits to be replaced")] == sorted(
        why.index(word) for word in ("could not correct", "Xid 4711", "waits to be replaced")
    )
