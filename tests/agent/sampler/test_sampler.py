"""The sampler over real readers, the hour it keeps, and what Prometheus and the doctor make of it."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quarterdeck_agent.board import Board
from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.doctor import DoctorContext, examine
from quarterdeck_agent.drivers.base import Found, Life
from quarterdeck_agent.drivers.cgroup import CgroupReader
from quarterdeck_agent.drivers.envoy_stats import ClusterStats
from quarterdeck_agent.drivers.host import HostReader
from quarterdeck_agent.errors import EngineUnresponsive, GatewayError
from quarterdeck_agent.metrics import exposition
from quarterdeck_agent.protocol import Gpu, HostGauges, HostInfo, Part, PartState
from quarterdeck_agent.sampler import Sampler, Sources
from quarterdeck_agent.series import History

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
INFO = HostInfo("h", "i", "0.1", "os", "k", "x86_64", 2, 1 << 30, "b", START, "process", "http://x", "/d")


class HandClock:
    """A clock whose hands the test turns."""

    boot_id = "boot"

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> datetime:
        return START + timedelta(seconds=self.seconds - 1000)


@dataclass
class Gateway:
    """A gateway that tells what the test says."""

    figures: dict[str, ClusterStats] = field(default_factory=dict)
    error: Exception | None = None
    rotations: list[int] = field(default_factory=list)

    async def stats(self) -> Mapping[str, ClusterStats]:
        if self.error is not None:
            raise self.error
        return self.figures

    async def rotate_access_log(self, largest: int) -> bool:
        self.rotations.append(largest)
        return False


def found(name: str, pid: int | None = None) -> Found:
    return Found(name, "digits", 1, "b", "v", f"{name}:1", Life.RUNNING, pids=(pid or os.getpid(),))


@dataclass
class Bench:
    board: Board
    clock: HandClock
    gateway: Gateway
    sampler: Sampler


def bench(tmp_path: Path, replicas: Sequence[Found] = ()) -> Bench:
    board, clock, gateway = Board(INFO), HandClock(), Gateway()
    sources = Sources(HostReader(tmp_path, clock), CgroupReader(), gateway, lambda: replicas, lambda: {"a": 1 << 30})
    return Bench(board, clock, gateway, Sampler(board, sources, clock))


def passes(it: Bench, count: int, seconds: float = 1.0) -> None:
    async def run() -> None:
        for _ in range(count):
            await it.sampler.sample()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            it.clock.seconds += seconds

    asyncio.run(run())


def stats(total: int, errors: int = 0, **more: Any) -> ClusterStats:
    return ClusterStats(total, errors, 0, more.pop("active", 1), more.pop("held", 2), **more)


def test_one_pass_publishes_host_replica_and_traffic(tmp_path: Path) -> None:
    it = bench(tmp_path, [found("a")])
    it.gateway.figures = {"digits.1": stats(10, p50=0.01)}
    passes(it, 2)
    status = it.board.status()
    assert status.gauges is not None and status.gauges.memory_total
    assert [(g.replica, g.deployment, g.revision) for g in status.replica_gauges] == [("a", "digits", 1)]
    assert [(t.deployment, t.revision, t.p50, t.held) for t in status.traffic] == [("digits", 1, 0.01, 2)]


def test_what_a_replica_holds_on_gpus_is_among_its_gauges_and_what_gpus_tell_is_kept(tmp_path: Path) -> None:
    it = bench(tmp_path, [found("a"), found("b")])
    it.board.publish("gpu", "GPU-0", Gpu(0, "GPU-0", "Pretend", 100, 50, 0.5, 40.0, 70.0))
    passes(it, 1)
    assert [gauges.gpu_memory for gauges in it.board.status().replica_gauges] == [1 << 30, None]
    for name, key, value in (("replica.gpu_memory", "a", 1 << 30), ("gpu.memory", "GPU-0", 50)):
        kept = it.sampler.series(name, key)
        assert kept is not None and [sample.value for sample in kept.samples] == [value]
    assert it.sampler.series("replica.gpu_memory", "b") is None


def test_rates_are_differences_over_time(tmp_path: Path) -> None:
    it = bench(tmp_path)
    it.gateway.figures = {"digits.1": stats(100, 5)}
    passes(it, 1, seconds=2.0)
    assert it.board.get("traffic", "digits/1").rate is None  # type: ignore[union-attr]
    it.gateway.figures = {"digits.1": stats(150, 15)}
    passes(it, 1)
    traffic = it.board.get("traffic", "digits/1")
    assert traffic is not None
    assert (traffic.rate, traffic.errors) == (25.0, 5.0)


def test_a_counter_that_went_back_began_anew(tmp_path: Path) -> None:
    it = bench(tmp_path)
    it.gateway.figures = {"digits.1": stats(100, 50)}
    passes(it, 1)
    it.gateway.figures = {"digits.1": stats(7, 1)}
    passes(it, 1)
    traffic = it.board.get("traffic", "digits/1")
    assert traffic is not None
    assert (traffic.rate, traffic.errors) == (7.0, 1.0)


def test_a_gateway_that_fails_takes_only_its_own_gauges_away(tmp_path: Path) -> None:
    it = bench(tmp_path, [found("a")])
    it.gateway.figures = {"digits.1": stats(1)}
    passes(it, 1)
    for error in (GatewayError("no answer"), TimeoutError(), ValueError("a fault")):
        it.gateway.error = error
        passes(it, 1)
        assert it.board.all("replica_gauges")
    assert not it.board.all("traffic")
    it.gateway.error = None
    passes(it, 1)
    assert it.board.all("traffic")


def test_a_replica_that_left_loses_its_gauges_and_keeps_its_history(tmp_path: Path) -> None:
    replicas = [found("a"), found("b")]
    it = bench(tmp_path, replicas)
    passes(it, 3)
    replicas.pop()
    passes(it, 1)
    assert set(it.board.all("replica_gauges")) == {"a"}
    kept = it.sampler.series("replica.memory", "b")
    assert kept is not None
    assert [sample.value is None for sample in kept.samples] == [False, False, False, True]


def test_the_access_log_is_looked_at_every_ten_seconds(tmp_path: Path) -> None:
    it = bench(tmp_path)
    passes(it, 25)
    assert len(it.gateway.rotations) == 3


def test_the_loop_runs_at_its_interval_until_cancelled(tmp_path: Path) -> None:
    board, gateway = Board(INFO), Gateway()
    sources = Sources(HostReader(tmp_path, SystemClock()), CgroupReader(), gateway, tuple)
    sampler = Sampler(board, sources, SystemClock(), interval=0.05)

    def samples() -> int:
        kept = sampler.series("host.memory", "")
        return 0 if kept is None else len(kept.samples)

    async def run() -> None:
        task = asyncio.create_task(sampler.run())
        async with asyncio.timeout(10):
            while samples() < 10:  # noqa: ASYNC110 - the loop under test has no event
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    began = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - began > 0.4


def test_twenty_replicas_cost_less_than_half_a_percent_of_a_core_to_sample(tmp_path: Path) -> None:
    for name in ("cpu.stat", "memory.current", "memory.max", "memory.stat", "pids.current"):
        (tmp_path / name).write_text("usage_usec 1\n" if name == "cpu.stat" else "1\n")
    replicas = [replace(found(f"r{n}"), cgroups={"unified": tmp_path}) for n in range(20)]
    it = bench(tmp_path, replicas)
    it.gateway.figures = {f"m{n}.1": stats(n, p50=0.1, p95=0.1, p99=0.1) for n in range(20)}
    passes(it, 5)
    began = time.process_time()
    passes(it, 100)
    assert (time.process_time() - began) / 100 < 0.005


# --- history ---------------------------------------------------------------------------------------------------


def test_history_keeps_its_length_and_shows_gaps() -> None:
    history = History(5)
    for tick in range(8):
        history.add(START + timedelta(seconds=tick), {("host.cpu", ""): None if tick == 5 else tick / 8})
    series = history.series("host.cpu", "")
    assert series is not None
    assert [sample.value for sample in series.samples] == [3 / 8, 4 / 8, None, 6 / 8, 7 / 8]
    assert (series.unit, series.samples[0].at) == ("ratio", START + timedelta(seconds=3))
    newer = history.series("host.cpu", "", START + timedelta(seconds=6))
    assert newer is not None and [sample.value for sample in newer.samples] == [7 / 8]


def test_a_series_that_is_all_old_is_forgotten() -> None:
    history = History(30)
    history.add(START, {("replica.cpu", "gone"): 1.0})
    assert history.series("replica.cpu", "gone") is not None
    for tick in range(1, 130):
        history.add(START + timedelta(seconds=tick), {})
    assert history.series("replica.cpu", "gone") is None
    assert history.series("no.such", "") is None


def test_a_series_that_comes_back_after_a_long_gap_shows_no_old_values() -> None:
    history = History(5)
    history.add(START, {("a", ""): 1.0})
    for tick in range(1, 12):
        history.add(START + timedelta(seconds=tick), {})
    history.add(START + timedelta(seconds=12), {("a", ""): 2.0})
    series = history.series("a", "")
    assert series is not None and [sample.value for sample in series.samples] == [2.0]


# --- metrics ---------------------------------------------------------------------------------------------------


def test_the_exposition_is_what_the_board_shows_and_leaves_out_what_was_not_measured(tmp_path: Path) -> None:
    it = bench(tmp_path, [found('a"\n\\b')])
    it.gateway.figures = {"digits.1": stats(10, p50=0.25)}
    passes(it, 1)
    text = exposition(it.board.status()).decode()
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    names = {name for name, _ in samples}
    assert samples["quarterdeck_host_cpus", ()] == 2
    assert samples["quarterdeck_latency_seconds", (("deployment", "digits"), ("quantile", "0.5"), ("revision", "1"))]
    assert "quarterdeck_requests_per_second" not in names
    assert "quarterdeck_gpu_power_limit_watts" not in names
    assert any(("replica", 'a"\n\\b') in labels for _, labels in samples)
    assert re.search(r"^# HELP quarterdeck_host_load1 ", text, re.M)


def test_an_empty_board_has_an_exposition() -> None:
    assert b"quarterdeck_agent_info" in exposition(Board(INFO).status())


# --- doctor ----------------------------------------------------------------------------------------------------


class Engine:
    name = "process"

    async def version(self) -> str:
        return "1"


class DeadEngine:
    name = "docker"

    async def version(self) -> str:
        raise EngineUnresponsive("docker has not answered for 5 s", hint="systemctl status docker")


class HungEngine:
    name = "docker"

    async def version(self) -> str:
        await asyncio.sleep(60)
        return ""


async def envoy() -> str:
    return "1.40"


def context(tmp_path: Path, **changes: Any) -> DoctorContext:
    tmp_path.chmod(0o700)
    part = Part("nvml", PartState.ABSENT, START, "", "no NVIDIA driver on this host")
    gauges = HostGauges(START, memory_total=100, memory_used=50)
    well = DoctorContext(tmp_path, Engine(), envoy, "3.51.3", 0, lambda: part, lambda: gauges, lambda: True)
    return replace(well, **changes)


def checks(it: DoctorContext) -> dict[str, Any]:
    return {check.name: check for check in asyncio.run(examine(it))}


def test_a_healthy_host_has_no_findings(tmp_path: Path) -> None:
    found = checks(context(tmp_path))
    assert [name for name, check in found.items() if check.result != "ok" and name not in ("disk", "open files")] == []
    assert "docker" not in found


def raising() -> bool | None:
    raise RuntimeError("boom")


def _docker(*, live_restore: bool) -> Callable[[], Awaitable[dict[str, Any]]]:
    async def info() -> dict[str, Any]:
        return {"LiveRestoreEnabled": live_restore}

    return info


@pytest.mark.parametrize(
    ("name", "changes", "result", "says"),
    [
        ("engine", {"engine": DeadEngine()}, "failed", "not answered"),
        ("engine", {"engine": HungEngine(), "deadline": 0.05}, "failed", "no answer within 0.05 s"),
        ("sqlite", {"sqlite_version": "3.40.1"}, "warning", "one connection does all"),
        ("sqlite", {"sqlite_version": "3.51.2"}, "warning", "WAL-reset"),
        ("sqlite", {"sqlite_version": "3.52.0"}, "ok", "3.52.0"),
        ("disk", {"min_free": 1 << 62}, "failed", "uploads are refused"),
        ("clock", {"clock_synchronised": lambda: False}, "warning", "not synchronised"),
        ("clock", {"clock_synchronised": raising}, "failed", "boom"),
        ("cgroups", {"cgroup_root": Path("/nonexistent")}, "warning", "none under"),
        ("docker", {"docker_info": _docker(live_restore=False)}, "warning", "live-restore is off"),
        ("docker", {"docker_info": _docker(live_restore=True)}, "ok", "live-restore is on"),
        ("nvml", {"nvml": lambda: Part("nvml", PartState.UNRESPONSIVE, START, "", "hangs")}, "failed", "hangs"),
        ("memory", {"gauges": lambda: HostGauges(START, memory_total=100, memory_used=99)}, "warning", "available"),
    ],
)
def test_each_trouble_is_found_with_its_mend_and_hides_no_other_check(
    tmp_path: Path, name: str, changes: dict[str, Any], result: str, says: str
) -> None:
    found = checks(context(tmp_path, **changes))
    assert found[name].result == result
    assert says in found[name].detail
    assert result == "ok" or found[name].mend
    assert len(found) >= 10


def test_a_data_folder_open_to_others_is_found(tmp_path: Path) -> None:
    it = context(tmp_path)
    tmp_path.chmod(0o755)
    assert checks(it)["data folder"].result == "warning"
