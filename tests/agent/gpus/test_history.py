"""Gauges over weeks: what a minute and a longer step tell, what the file survives, and what goes first."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from quarterdeck_agent import historyfile
from quarterdeck_agent.doctor import DoctorContext, examine
from quarterdeck_agent.gauges import Gauges, chosen_step, sampled
from quarterdeck_agent.history import Minutes
from quarterdeck_agent.historyfile import HistoryFile, Minute
from quarterdeck_agent.protocol import Check, Gpu, ReplicaGauges, Series
from quarterdeck_agent.series import UNITS, History, Key, gpu_values, replica_values

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
FIRST = int(START.timestamp()) // 60
CPU: Key = ("host.cpu", "")
DAY = 24 * 60


class HandClock:
    """A clock whose hands the test turns."""

    boot_id = "boot"

    def __init__(self) -> None:
        self.at = START

    def now(self) -> float:
        return (self.at - START).total_seconds()

    def wall(self) -> datetime:
        return self.at


def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


def tick(minutes: Minutes | Gauges, seconds: float, values: Mapping[Key, float | None] | float) -> None:
    """One tick; where minutes are kept, what it began to write is written."""
    minutes.add(START + timedelta(seconds=seconds), {CPU: values} if isinstance(values, int | float) else values)
    kept = minutes.minutes if isinstance(minutes, Gauges) else minutes
    if kept is not None:
        kept.settle(10)


def written(tmp_path: Path, key: Key = CPU) -> dict[int, tuple[float, float]]:
    """The minutes in the file, counted from the start."""
    found = historyfile.read(path(tmp_path), key, FIRST - 365 * DAY, FIRST + 400 * DAY) or {}
    return {number - FIRST: point for number, point in found.items()}


def fill(tmp_path: Path, days: range, per_day: int = 1) -> None:
    """A few minutes on each of `days`, counted from the start."""
    file = HistoryFile(path(tmp_path))
    minutes = [FIRST + day * DAY + n for day in days for n in range(per_day)]
    file.keep([Minute(number, {CPU: (1.0, 1.0)}) for number in minutes], since=0, size=1 << 30)
    file.close()


# --- minutes ---------------------------------------------------------------------------------------------------


def test_a_minute_has_its_mean_and_its_maximum(tmp_path: Path) -> None:
    minutes = Minutes(path(tmp_path))
    for second in range(60):
        tick(minutes, second, {CPU: second / 100, ("gpu.power", "GPU-0"): 300.0 if second == 7 else 100.0})
    assert not path(tmp_path).exists()
    tick(minutes, 60, 0.5)
    [(number, (mean, peak))] = written(tmp_path).items()
    assert (number, round(mean, 4), round(peak, 4)) == (0, 0.295, 0.59)
    assert written(tmp_path, ("gpu.power", "GPU-0"))[0] == pytest.approx((103.3333, 300.0))
    minutes.close()


def test_what_was_not_measured_is_a_gap_and_no_zero(tmp_path: Path) -> None:
    minutes = Minutes(path(tmp_path))
    for number, value in enumerate((0.25, None, 0.75)):
        tick(minutes, number * 60, {CPU: value, ("host.load1", ""): None})
    minutes.close()
    assert written(tmp_path) == {0: (0.25, 0.25), 2: (0.75, 0.75)}
    assert historyfile.names(path(tmp_path)) == (CPU,)


def test_single_replicas_are_not_kept_but_the_sums_of_their_revision_are(tmp_path: Path) -> None:
    shown = [ReplicaGauges(f"r{n}", "digits", 3, 0.5, 100, gpu_memory=None if n else 7 << 30) for n in range(2)]
    values = replica_values(shown)
    assert values["replica.gpu_memory", "r0"] == 7 << 30
    minutes = Minutes(path(tmp_path))
    tick(minutes, 0, values)
    minutes.close()
    assert set(historyfile.names(path(tmp_path))) == {
        ("revision.cpu", "digits/3"), ("revision.memory", "digits/3"), ("revision.gpu_memory", "digits/3")
    }  # fmt: skip
    assert written(tmp_path, ("revision.gpu_memory", "digits/3")) == {0: (7 << 30, 7 << 30)}
    assert written(tmp_path, ("revision.cpu", "digits/3")) == {0: (1.0, 1.0)}


def test_every_gauge_of_a_gpu_has_a_unit() -> None:
    names = {name for name, _ in gpu_values(Gpu(0, "GPU-0", "H100"))}
    assert len(names) == 12
    assert names <= UNITS.keys()


def test_a_restart_loses_no_minute_and_joins_the_one_it_parts(tmp_path: Path) -> None:
    before = Minutes(path(tmp_path))
    tick(before, 0, 0.1)
    tick(before, 60, 0.25)
    before.close()
    after = Minutes(path(tmp_path))
    tick(after, 90, 0.75)
    tick(after, 120, 0.5)
    after.close()
    found = written(tmp_path)
    assert set(found) == {0, 1, 2}
    assert found[1] == (0.5, 0.75)


def test_a_minute_that_a_restart_parts_is_told_whole_before_it_is_over(tmp_path: Path) -> None:
    before = Minutes(path(tmp_path))
    tick(before, 10, 0.25)
    before.close()
    clock = HandClock()
    clock.at = START + timedelta(seconds=30)
    gauges = Gauges(clock, Minutes(path(tmp_path)), hour=History(1))
    tick(gauges, 30, 0.75)
    found = asyncio.run(gauges._minutes(gauges.minutes, CPU, START)) if gauges.minutes else None
    assert found == {FIRST: (0.5, 0.75)}
    gauges.close()


def test_an_agent_that_is_killed_loses_at_most_the_current_minute(tmp_path: Path) -> None:
    minutes = Minutes(path(tmp_path))
    for number in range(3):
        tick(minutes, number * 60, 0.5)
    assert set(written(tmp_path)) == {0, 1}  # with the writer still open, as a kill leaves it
    minutes.close()


def test_a_clock_that_is_set_back_overwrites_nothing_it_does_not_reach(tmp_path: Path) -> None:
    minutes = Minutes(path(tmp_path))
    for second, value in ((0, 0.25), (60, 0.5), (120, 0.5), (60, 1.0)):
        tick(minutes, second, value)
    minutes.close()
    assert written(tmp_path) == {0: (0.25, 0.25), 1: (0.75, 1.0), 2: (0.5, 0.5)}


# --- age and size ----------------------------------------------------------------------------------------------


def test_what_is_older_than_the_days_kept_goes_with_its_series(tmp_path: Path) -> None:
    fill(tmp_path, range(3))
    with HistoryConnection(tmp_path) as db:
        db.execute("INSERT INTO series (name, key, newest) VALUES ('gpu.power', 'gone', ?)", (FIRST // 60,))
    minutes = Minutes(path(tmp_path), days=2)
    for hour in range(2 * 24 + 12, 2 * 24 + 15):
        tick(minutes, hour * 3600, 0.5)
    minutes.close()
    assert min(written(tmp_path)) == DAY
    assert ("gpu.power", "gone") not in historyfile.names(path(tmp_path))


def test_a_clock_that_is_far_ahead_for_a_while_costs_a_day_and_no_month(tmp_path: Path) -> None:
    fill(tmp_path, range(30))
    minutes = Minutes(path(tmp_path))
    for number in range(20):
        tick(minutes, 3650 * 86400 + number * 60, 0.5)
    minutes.close()
    assert set(written(tmp_path)) == {day * DAY for day in range(1, 30)}


def test_the_oldest_days_go_when_the_size_is_reached_and_the_newest_hour_stays(tmp_path: Path) -> None:
    file = HistoryFile(path(tmp_path))
    values = {("gpu.power", f"GPU-{n}"): (1.0, 1.0) for n in range(100)}
    for hour in range(24 * 4):
        file.keep([Minute(FIRST + hour * 60, values)], since=0, size=3 << 20)
    file.close()
    found = sorted(written(tmp_path, ("gpu.power", "GPU-7")))
    assert found[-1] == (24 * 4 - 1) * 60
    assert found[0] >= DAY
    assert len(found) >= 36
    assert path(tmp_path).stat().st_size < 3.3 * (1 << 20)


def test_a_smaller_size_shrinks_the_file(tmp_path: Path) -> None:
    file = HistoryFile(path(tmp_path))
    values = {("gpu.power", f"GPU-{n}"): (1.0, 1.0) for n in range(100)}
    file.keep([Minute(FIRST + hour * 60, values) for hour in range(96)], since=0, size=1 << 30)
    file.keep([Minute(FIRST + 96 * 60, values)], since=0, size=1 << 20)
    file.close()
    assert path(tmp_path).stat().st_size < 1.6 * (1 << 20)
    assert max(written(tmp_path, ("gpu.power", "GPU-7"))) == 96 * 60


# --- trouble ---------------------------------------------------------------------------------------------------


class HistoryConnection:
    """A second way into the file, to spoil it."""

    def __init__(self, tmp_path: Path) -> None:
        self._db = sqlite3.connect(path(tmp_path))

    def __enter__(self) -> sqlite3.Connection:
        return self._db

    def __exit__(self, *_: object) -> None:
        self._db.commit()
        self._db.close()


def spoil_start(tmp_path: Path) -> None:
    path(tmp_path).write_bytes(b"this is no database" * 1000)


def spoil_middle(tmp_path: Path) -> None:
    with path(tmp_path).open("r+b") as handle:
        handle.seek(4096)
        handle.write(os.urandom(8192))


def from_the_future(tmp_path: Path) -> None:
    with HistoryConnection(tmp_path) as db:
        db.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize("spoil", [spoil_start, spoil_middle, from_the_future])
def test_a_file_that_cannot_be_gone_on_with_is_put_aside_and_a_new_one_begun(
    tmp_path: Path, spoil: object, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, range(30), per_day=3)
    assert callable(spoil)
    spoil(tmp_path)
    minutes = Minutes(path(tmp_path))
    tick(minutes, 0, 0.25)
    tick(minutes, 60, 0.5)
    tick(minutes, 120, 0.5)
    minutes.close()
    assert written(tmp_path) == {0: (0.25, 0.25), 1: (0.5, 0.5), 2: (0.5, 0.5)}
    assert (tmp_path / "history.sqlite.damaged").stat().st_size > 4096
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert minutes.trouble == ""


def test_of_files_that_were_put_aside_only_the_newest_one_stays(tmp_path: Path) -> None:
    for number in range(3):
        path(tmp_path).write_bytes(bytes([65 + number]) * 9000)
        minutes = Minutes(path(tmp_path))
        tick(minutes, number * 60, 0.5)
        minutes.close()
    aside = sorted(each.name for each in tmp_path.iterdir() if "damaged" in each.name)
    assert aside == ["history.sqlite.damaged"]
    assert (tmp_path / aside[0]).read_bytes() == b"C" * 9000


def test_a_file_that_is_spoilt_while_it_is_open_is_put_aside_once_somebody_reads_it(tmp_path: Path) -> None:
    minutes = Minutes(path(tmp_path))
    for number in range(3):
        tick(minutes, number * 60, 0.5)
    minutes.settle(10)
    with path(tmp_path).open("r+b") as handle, (tmp_path / "history.sqlite-wal").open("r+b") as wal:
        handle.write(b"x" * 100)
        wal.truncate(0)
    assert minutes.read(CPU, FIRST, FIRST + 10) is None
    tick(minutes, 180, 0.5)
    tick(minutes, 240, 0.5)
    assert minutes.read(CPU, FIRST, FIRST + 10) == {FIRST + 2: (0.5, 0.5), FIRST + 3: (0.5, 0.5)}
    minutes.close()


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Files of this process grow no further than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_once_and_what_it_kept_out_is_written_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    minutes = Minutes(path(tmp_path))
    with full_disk(100):
        for number in range(30):
            tick(minutes, number * 60, 0.5)
        assert minutes.trouble
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
    tick(minutes, 30 * 60, 0.5)
    minutes.close()
    assert set(written(tmp_path)) == set(range(31))
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]
    assert not (tmp_path / "history.sqlite.damaged").exists()


def test_what_cannot_be_written_for_hours_is_bounded_the_newest_kept(tmp_path: Path) -> None:
    minutes = Minutes(tmp_path / "not there" / "history.sqlite")
    for number in range(300):
        tick(minutes, number * 60, 0.5)
    assert minutes.trouble
    (tmp_path / "not there").mkdir()
    minutes.close()
    found = historyfile.read(minutes.path, CPU, FIRST, FIRST + 400)
    assert found is not None and 100 <= len(found) <= 121
    assert max(found) == FIRST + 299


def doctor(minutes: Minutes | None) -> Check:
    async def nothing() -> str:
        return ""

    class Engine:
        name = "process"

        async def version(self) -> str:
            return ""

    context = DoctorContext(
        Path("/"), Engine(), nothing, "3.51.3", 0, lambda: None, lambda: None, lambda: True, history=minutes
    )
    return next(check for check in asyncio.run(examine(context)) if check.name == "history")


def test_the_doctor_tells_how_the_history_is(tmp_path: Path) -> None:
    assert doctor(None).result == "ok"
    minutes = Minutes(tmp_path / "not there" / "history.sqlite")
    assert doctor(minutes).result == "ok"
    tick(minutes, 0, 0.5)
    tick(minutes, 60, 0.5)
    troubled = doctor(minutes)
    assert troubled.result == "warning" and "No such file" in troubled.detail and troubled.mend
    (tmp_path / "not there").mkdir()
    minutes.path.write_bytes(b"this is no database" * 1000)
    tick(minutes, 120, 0.5)
    damaged = doctor(minutes)
    assert damaged.result == "warning" and "history.sqlite.damaged" in damaged.detail and damaged.mend
    (tmp_path / "not there" / "history.sqlite.damaged").unlink()
    well = doctor(minutes)
    assert well.result == "ok" and well.detail.endswith("KiB, for at most 30 days")
    minutes.close()


def test_a_file_that_somebody_removed_is_begun_anew(tmp_path: Path) -> None:
    minutes = Minutes(path(tmp_path))
    tick(minutes, 0, 0.5)
    tick(minutes, 60, 0.5)
    path(tmp_path).unlink()
    tick(minutes, 120, 0.5)
    assert 1 in written(tmp_path)
    minutes.close()


def test_a_disk_that_hangs_holds_up_neither_the_loop_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, let_go = threading.Event(), threading.Event()

    def keep(*_: object, **__: object) -> None:
        hangs.set()
        let_go.wait(30)

    monkeypatch.setattr(HistoryFile, "keep", keep)
    monkeypatch.setattr("quarterdeck_agent.history.CLOSING", 0.05)
    minutes = Minutes(path(tmp_path))
    began = time.monotonic()
    for number in range(200):
        minutes.add(START + timedelta(minutes=number), {CPU: 0.5})
    assert hangs.wait(10)
    minutes.close()
    assert time.monotonic() - began < 5
    assert sum(thread.name == "history" for thread in threading.enumerate()) == 1
    let_go.set()
    minutes.settle(10)


def test_readers_cannot_write(tmp_path: Path) -> None:
    fill(tmp_path, range(1))
    with historyfile._reader(path(tmp_path)) as db, pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("DELETE FROM hours")


# --- spans -----------------------------------------------------------------------------------------------------


class Bench:
    """A month of minutes of the host's CPU, of which the last two hours were also sampled every ten seconds."""

    def __init__(self, tmp_path: Path, days: int = 30) -> None:
        file = HistoryFile(path(tmp_path))
        span = days * DAY
        month = [Minute(FIRST - span + n, {CPU: (n % 60 / 64, 1.0 if n == 7000 else 0.99)}) for n in range(span)]
        file.keep(month, since=0, size=1 << 30)
        file.close()
        self.clock = HandClock()
        self.gauges = Gauges(self.clock, Minutes(path(tmp_path)), hour=History(360, 10.0))
        for number in range(720):
            self.clock.at = START + timedelta(seconds=number * 10)
            tick(self.gauges, number * 10, 0.5)

    def ask(self, since: timedelta | None = None, **more: float) -> Series:
        moment = None if since is None else self.clock.at - since
        found = asyncio.run(self.gauges.series("host.cpu", "", moment, **more))  # type: ignore[arg-type]
        assert found is not None
        return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    it = Bench(tmp_path_factory.mktemp("bench"))
    yield it
    it.gauges.close()


def test_the_last_hour_comes_as_it_was_sampled(bench: Bench) -> None:
    for found in (bench.ask(), bench.ask(timedelta(minutes=60))):
        assert found.step == 10
        assert len(found.samples) == 360
        assert found.samples[-1].at == bench.clock.at
        assert found.samples[0].max is None


def test_an_older_span_comes_in_minutes_up_to_now(bench: Bench) -> None:
    found = bench.ask(timedelta(hours=3))
    assert (found.step, found.unit) == (60, "ratio")
    assert found.samples[0].at == bench.clock.at.replace(second=0) - timedelta(hours=3) + timedelta(minutes=1)
    assert found.samples[-1].at == bench.clock.at.replace(second=0)
    assert {b.at - a.at for a, b in zip(found.samples, found.samples[1:], strict=False)} == {timedelta(minutes=1)}


@pytest.mark.parametrize("points", [2, 3, 100, 999, 1000, 40_000])
def test_a_long_span_is_thinned_to_the_points_asked_for_and_loses_no_peak(bench: Bench, points: int) -> None:
    found = bench.ask(timedelta(days=30), points=points)
    assert points / 3 < len(found.samples) <= points
    assert max(sample.max for sample in found.samples if sample.max is not None) == 1.0
    means = [sample.value for sample in found.samples if sample.value is not None]
    assert 0.45 < sum(means) / len(means) < 0.52
    assert found.step % 60 == 0


def test_a_span_beyond_the_hour_has_a_thousand_points_at_most_unless_asked(bench: Bench) -> None:
    found = bench.ask(timedelta(days=30))
    assert 900 <= len(found.samples) <= 1000
    assert len(bench.ask(timedelta(days=30), points=50_000).samples) > 40_000


def test_a_step_is_kept_to_and_the_hour_is_thinned_too(bench: Bench) -> None:
    assert bench.ask(timedelta(hours=5), step=600).step == 600
    hour = bench.ask(step=60)
    assert hour.step == 60 and len(hour.samples) in (60, 61)
    assert hour.samples[5].max == hour.samples[5].value == 0.5
    assert len(bench.ask(points=20).samples) <= 20


def test_a_series_that_nobody_knows_is_none(bench: Bench) -> None:
    assert asyncio.run(bench.gauges.series("host.cpu", "elsewhere", START - timedelta(days=9))) is None
    assert asyncio.run(bench.gauges.series("no.such", "")) is None


def test_a_series_that_ended_is_still_told_of(tmp_path: Path) -> None:
    it = Bench(tmp_path, days=1)
    file = HistoryFile(path(tmp_path))
    file.keep([Minute(FIRST - 300, {("gpu.power", "gone"): (5.0, 6.0)})], since=0, size=1 << 30)
    file.close()
    found = asyncio.run(it.gauges.series("gpu.power", "gone", START - timedelta(hours=8)))
    assert found is not None
    assert [(s.value, s.max) for s in found.samples if s.value is not None] == [(5.0, 6.0)]
    assert found.samples[-1].at > START
    lately = asyncio.run(it.gauges.series("gpu.power", "gone"))
    assert lately is not None and lately.samples == ()
    it.gauges.close()


def test_after_a_restart_the_hour_before_it_comes_from_the_history(tmp_path: Path) -> None:
    fill(tmp_path, range(-1, 1))
    clock = HandClock()
    gauges = Gauges(clock, Minutes(path(tmp_path)))
    clock.at = START + timedelta(minutes=30)
    tick(gauges, 1800, 0.5)
    found = asyncio.run(gauges.series("host.cpu", "", START - timedelta(minutes=15)))
    assert found is not None
    assert (found.step, found.samples[0].at, len(found.samples)) == (60, START, 31)
    assert [s.value for s in found.samples if s.value is not None] == [1.0, 0.5]
    gauges.close()


def test_a_host_that_is_younger_than_what_is_asked_for_tells_its_seconds(tmp_path: Path) -> None:
    clock = HandClock()
    gauges = Gauges(clock, Minutes(path(tmp_path)))
    for number in range(200):
        clock.at = START + timedelta(seconds=number)
        tick(gauges, number, 0.5)
    found = asyncio.run(gauges.series("host.cpu", "", START - timedelta(days=3)))
    assert found is not None
    assert (found.step, len(found.samples)) == (1, 200)
    gauges.close()


def test_a_damaged_history_leaves_the_hour(tmp_path: Path) -> None:
    spoil_start(tmp_path)
    clock = HandClock()
    gauges = Gauges(clock, Minutes(path(tmp_path)))
    gauges.add(START, {CPU: 0.5})
    found = asyncio.run(gauges.series("host.cpu", "", START - timedelta(days=3)))
    assert found is not None and [s.value for s in found.samples] == [0.5]
    assert [name.name for name in asyncio.run(gauges.names())] == ["host.cpu"]
    gauges.close()


def test_all_series_are_listed_with_their_units(bench: Bench) -> None:
    bench.gauges.hour.add(bench.clock.at, {("replica.cpu", "r1"): 1.0})
    listed = asyncio.run(bench.gauges.names())
    assert [(it.name, it.key, it.unit) for it in listed] == [("host.cpu", "", "ratio"), ("replica.cpu", "r1", "cores")]


@pytest.mark.parametrize(
    ("span", "base", "step", "points", "chosen"),
    [
        (3600, 1, 1, 3600, 2),  # such a span touches 3,601 seconds
        (3599, 1, 1, 3600, 1),
        (30 * 86400, 60, 60, 1000, 2640),
        (30 * 86400, 60, 3600, 1000, 3600),
        (600, 60, 90, 1000, 120),
        (0, 60, 60, 2, 60),
    ],
)
def test_the_step_is_the_least_that_does(span: float, base: float, step: float, points: int, chosen: float) -> None:
    assert chosen_step(span, base, step, points) == chosen
    for began in range(0, 7200, 601):
        assert len(sampled([(began, 1.0, 1.0)], chosen, began + span)) <= points


def test_a_gap_within_a_span_is_samples_without_a_value() -> None:
    found = sampled([(0.0, 1.0, 2.0), (60.0, 3.0, 9.0), (360.0, 5.0, 5.0)], 120.0, 500.0)
    assert [(s.at.timestamp(), s.value, s.max) for s in found] == [
        (0, 2.0, 9.0), (120, None, None), (240, None, None), (360, 5.0, 5.0), (480, None, None)
    ]  # fmt: skip


# --- what it costs ---------------------------------------------------------------------------------------------


def test_eight_gpus_cost_little_to_keep(tmp_path: Path) -> None:
    full = Gpu(0, "u", "n", 1, 1, 0.1, 1.0, 1.0, 1.0, 1, 1, 0.1, 0.1, 0.1, 1, 1, (), 0.1, 0, 1, 1)
    gpus = [f"GPU-{n:08d}-1111-2222-3333-444455556666" for n in range(8)]
    points = {(name, gpu): (0.5, 1.0) for gpu in gpus for name, _ in gpu_values(full)}
    assert len(points) == 96
    file = HistoryFile(path(tmp_path))
    began = time.process_time()
    for number in range(600):
        file.keep([Minute(FIRST + number, points)], since=0, size=1 << 30)
    each = (time.process_time() - began) / 600
    file.close()
    month = path(tmp_path).stat().st_size / 10 * 24 * 30
    assert each < 0.02
    assert month < 64 << 20
