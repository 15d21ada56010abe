"""`qd gpus`: every GPU with whose its memory is, as it changes, and how it was; and the pure functions beneath."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from quarterdeck_agent import protocol as p
from quarterdeck_console import chart, gpu_metrics, gpus, views
from quarterdeck_console.cli.verbs.gpus import METRICS
from tests.console.fake_agent import AT, GIB, GPU_STATUS, XID, FakeAgent, Reply
from tests.console.running import command, environment, fleet_of, qd
from tests.console.test_json import validate


@pytest.fixture
def gpu_agent(agent: FakeAgent) -> FakeAgent:
    agent.status = GPU_STATUS
    return agent


def device(uuid: str, status: p.HostStatus = GPU_STATUS) -> gpus.Device:
    return next(each for each in gpus.devices(status) if each.gpu.uuid == uuid)


# --- whose memory it is ----------------------------------------------------------------------------------------------


def test_a_gpus_mig_instances_stand_below_it_wherever_the_host_lists_them() -> None:
    shuffled = replace(GPU_STATUS, gpus=(*GPU_STATUS.gpus[2:], *GPU_STATUS.gpus[:2]))
    assert [each.what for each in gpus.devices(shuffled)] == ["GPU 2", "GPU 0", "GPU 1", "MIG 1.0"]
    assert gpus.labels(GPU_STATUS) == {"GPU-0": "0", "GPU-1": "1", "MIG-1-0": "1.0", "GPU-2": "2"}


def test_an_instance_whose_gpu_is_unknown_is_shown_all_the_same() -> None:
    alone = replace(GPU_STATUS, gpus=GPU_STATUS.gpus[2:3])
    assert [each.gpu.uuid for each in gpus.devices(alone)] == ["MIG-1-0"]


def test_shares_are_deployments_then_unmanaged_then_unexplained_then_free() -> None:
    assert [(each.owner.value, each.words, each.memory) for each in gpus.shares(device("GPU-0"))] == [
        ("deployment", "digits r2 (r-1)", 4 * GIB),
        ("unmanaged", "unmanaged pid 4711 alice python", 40 * GIB),
        ("unexplained", "unexplained", 3 * GIB),
        ("free", "free", 33 * GIB),
    ]


def test_all_processes_of_a_replica_are_one_share() -> None:
    worker = p.GpuProcess(1, GIB, replica="r-1", deployment="digits", revision=2)
    both = p.GpuUse("GPU-0", (worker, replace(worker, pid=2)))
    (share,) = [each for each in gpus.shares(replace(device("GPU-0"), use=both)) if each.owner == gpus.Owner.DEPLOYMENT]
    assert share.memory == 2 * GIB


def test_memory_that_the_driver_does_not_tell_is_a_dash_and_never_zero() -> None:
    (unmanaged, *_) = gpus.shares(device("MIG-1-0"))
    assert unmanaged.memory is None
    assert gpus.owned(unmanaged) == "unmanaged pid 812 bo jupyter –"
    assert [gpus.memory(p.Gpu(0, "", "")), gpus.power(p.Gpu(0, "", "")), gpus.temperature(p.Gpu(0, "", ""))] == [
        "–"
    ] * 3


def test_health_in_short_names_the_xid_and_since_when() -> None:
    assert gpus.health_words(device("GPU-2")) == f"Xid 79: lost since {XID.at.astimezone():%H:%M}"
    assert gpus.health_words(device("GPU-0")) == ""
    hot = replace(device("GPU-0").gpu, health=p.GpuHealth.DEGRADED, why="slowed down for more than 60 s")
    assert gpus.health_words(gpus.Device(hot, "0")) == "degraded: slowed down for more than 60 s"
    newer = replace(hot, health=p.GpuHealth("levitating"), why="")
    assert gpus.health_words(gpus.Device(newer, "0")) == "levitating"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (100 << 20, "0.1"), (int(3.9 * GIB), "3.9"), (10 * GIB, "10"), (61 * GIB, "61")]
)
def test_gibibytes_have_as_many_figures_as_tell_something(count: int, text: str) -> None:
    assert gpus.gib(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(300, "5m"), (3600, "1h"), (86400, "24h"), (7 * 86400, "7d"), (5400, "90m"), (61, "1m01s"), (0.2, "200 ms")],
)
def test_spans(seconds: float, text: str) -> None:
    assert views.span(seconds) == text


def test_the_verb_offers_the_gauges_that_can_be_drawn() -> None:
    assert set(METRICS) == set(gpu_metrics.BY_NAME)


def test_the_highest_value_is_also_found_within_a_longer_step() -> None:
    assert gpu_metrics.highest([p.Sample(AT, 0.5, 0.9), p.Sample(AT, 0.7), p.Sample(AT, None)]) == 0.9
    assert gpu_metrics.highest([p.Sample(AT, None)]) is None


# --- the table -------------------------------------------------------------------------------------------------------


def test_every_gpu_with_whose_memory_it_is_fits_80_columns(gpu_agent: FakeAgent, fleet: Path) -> None:
    ran = qd(fleet, "gpus")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines == [
        "HOST  GPU  LOAD     MEMORY  TEMP     POWER  HEALTH  NAME",
        "box     0   71%  47/80 GiB   64°  512/700W  ok      H100 80GB HBM3",
        "        4.0 GiB  digits r2 (r-1)",
        "       40.0 GiB  unmanaged pid 4711 alice python",
        "        3.0 GiB  unexplained",
        "box     1     –   8/80 GiB   41°   98/400W  ok      A100-SXM4-80GB",
        "box   1.0     –   8/10 GiB     –         –  ok      MIG 1g.10gb",
        "              –  unmanaged pid 812 bo jupyter",
        "box     2     –          –     –         –  lost    H100 80GB HBM3",
        "      ⚠ Xid 79 at 12:00 UTC on 31 Jan: the GPU fell off the bus; drain the host and reboot",
    ]


def test_on_a_terminal_a_long_reason_is_broken_where_it_ends(gpu_agent: FakeAgent, fleet: Path) -> None:
    shown = in_terminal("gpus", env=environment(fleet, {"NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"}))
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "reboot" in shown


def test_a_host_that_does_not_answer_is_a_row_and_the_exit_code_is_6(gpu_agent: FakeAgent, tmp_path: Path) -> None:
    gone = FakeAgent(tmp_path / "gone")
    ran = qd(fleet_of(tmp_path, gpu_agent, gone), "gpus")
    assert ran.code == 6
    assert "gone" in ran.out and "unreachable" in ran.out and "H100" in ran.out


def test_an_nvml_that_fails_says_so(agent: FakeAgent, fleet: Path) -> None:
    part = p.Part("nvml", p.PartState.FAILED, AT, detail="driver and library differ: reboot, or load the driver anew")
    agent.status = replace(agent.status, parts=(part,))
    assert "nvml failed  driver and library differ" in qd(fleet, "gpus").out


def test_a_fleet_without_gpus_says_so_beside_the_data(agent: FakeAgent, fleet: Path) -> None:
    ran = qd(fleet, "gpus")
    assert (ran.code, ran.out) == (0, "")
    assert "no host has a GPU" in ran.err
    assert qd(fleet, "gpus", "--json").json["items"] == []


def test_hostile_names_are_shown_and_harmless(agent: FakeAgent, fleet: Path) -> None:
    evil = "a\x1b[2J\x1b]52;c;ZXZpbA==\x07\u202e\nb"
    status = replace(
        GPU_STATUS,
        gpus=(replace(GPU_STATUS.gpus[0], name=evil, health=p.GpuHealth.SICK, why=evil, throttle=(evil,)),),
        gpu_uses=(p.GpuUse("GPU-0", (p.GpuProcess(1, 1, user=evil, command=evil),)),),
    )
    agent.status = status
    shown = in_terminal("gpus", env=environment(fleet, {"NO_COLOR": "1", "TERM": "xterm"}))
    assert "unmanaged pid 1 a\\x1b[2J" in shown
    assert not set("\x1b\x07\u202e") & set(shown)
    assert "\x1b" not in qd(fleet, "gpus", "--json").out


# --- watching --------------------------------------------------------------------------------------------------------


def changed(**more: Any) -> p.Delta:
    return p.Delta("gpu", "GPU-0", replace(GPU_STATUS.gpus[0], **more))


def test_watch_prints_every_gpu_and_then_what_changes(gpu_agent: FakeAgent, fleet: Path) -> None:
    with watching(fleet, "gpus", "--watch") as lines:
        first = [lines.readline() for _ in range(4)]
        assert "box  GPU 0  71%  47/80 GiB  64°  512/700W  ok  digits r2 (r-1) 4.0 GiB, unmanaged pid 4711" in first[0]
        gpu_agent.push_event(changed(), changed(utilisation=0.05))
        assert "GPU 0  5%" in lines.readline()
        gpu_agent.push_event(p.Delta("gpu_use", "GPU-0", p.GpuUse("GPU-0")), p.Delta("gpu", "GPU-0", None))
        assert lines.readline().rstrip().endswith("512/700W  ok")
        assert "GPU-0 is gone" in lines.readline()


def test_watch_as_json_is_one_valid_object_a_line(gpu_agent: FakeAgent, fleet: Path) -> None:
    with watching(fleet, "gpus", "--watch", "--json") as lines:
        documents = [json.loads(lines.readline()) for _ in range(4)]
        gpu_agent.push_event(changed(temperature=70.0), p.Delta("gpu", "GPU-0", None))
        documents += [json.loads(lines.readline()) for _ in range(2)]
    for document in documents:
        validate(document)
    assert [each["type"] for each in documents] == ["snapshot"] * 4 + ["changed", "removed"]
    assert documents[4]["item"]["temperature"] == 70.0
    assert documents[4]["item"]["use"]["processes"][0]["pid"] == 4711


def test_watch_on_a_terminal_draws_one_table_in_its_place(gpu_agent: FakeAgent, fleet: Path) -> None:
    ours, theirs = pty.openpty()
    env = environment(fleet, {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "80", "LINES": "24"})
    process = subprocess.Popen(command("gpus", "--watch"), stdout=theirs, stderr=theirs, stdin=theirs, env=env)
    os.close(theirs)
    try:
        first = read_until(ours, b"reboot")
        assert b"\x1b[11A" not in first
        gpu_agent.push_event(changed(utilisation=0.05))
        again = read_until(ours, b"reboot")
        assert b"\x1b[11A\r\x1b[J" in again
        assert b"   5%" in again
    finally:
        process.kill()
        process.wait(10)
        os.close(ours)


# --- the past --------------------------------------------------------------------------------------------------------


def test_since_draws_load_and_memory_of_each_gpu(gpu_agent: FakeAgent, fleet: Path) -> None:
    start = datetime.now(UTC) - timedelta(hours=24)
    samples = tuple(p.Sample(start + timedelta(minutes=n), n / 1440, 1.0) for n in range(1440))
    gpu_agent.answers["GET /v1/series"] = Reply(p.Series("gpu.utilisation", "GPU-0", "ratio", samples, 60.0))
    ran = qd(fleet, "gpus", "--since", "24h", "--metric", "utilisation", extra={"COLUMNS": "80"})
    assert ran.code == 0
    assert "load of GPU 0 on box, last 24h  H100 80GB HBM3" in ran.out
    assert "lowest 0%, highest 100%, last 100%" in ran.out
    assert "   100% │" in ran.out and "└-24h─" in ran.out
    assert max(len(line) for line in ran.out.splitlines()) <= 80
    asked = gpu_agent.asked("GET /v1/series")
    assert len(asked) == 4
    assert {each.query["points"] for each in asked} == {"160"}


def test_without_a_metric_it_is_load_and_memory(gpu_agent: FakeAgent, fleet: Path) -> None:
    ran = qd(fleet, "gpus", "--since", "2026-01-31T11:59:00Z")
    assert "load of GPU 0 on box" in ran.out and "memory of GPU 0 on box" in ran.out
    assert "lowest 40G, highest 44G, last 44G" in ran.out


def test_a_gauge_that_a_host_does_not_keep_is_no_error(gpu_agent: FakeAgent, fleet: Path) -> None:
    ran = qd(fleet, "gpus", "--since", "1h", "-m", "fan")
    assert ran.code == 0
    assert "nothing was measured" in ran.out
    assert qd(fleet, "gpus", "--since", "1h", "-m", "fan", "--json").json["items"] == []


@pytest.mark.parametrize("words", ["--metric power", "--points 5", "--watch --since 1h", "--since yesterday"])
def test_what_does_not_go_together_is_refused(words: str, gpu_agent: FakeAgent, fleet: Path) -> None:
    assert qd(fleet, "gpus", *words.split()).code == 2
    assert not gpu_agent.requests


def test_charts_know_no_terminal() -> None:
    lines = chart.draw([p.Sample(AT, 0.5)], AT - timedelta(days=7), AT, (40, 5), 1.0, lambda value: f"{value:.0%}")
    assert lines[-1].strip().startswith("└-7d─")


# --- driving ---------------------------------------------------------------------------------------------------------


class watching:
    """A `qd` that goes on, by its lines."""

    def __init__(self, fleet: Path, *words: str) -> None:
        self._process = subprocess.Popen(
            command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(fleet), text=True
        )

    def __enter__(self) -> Any:
        return self._process.stdout

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def in_terminal(*words: str, env: dict[str, str]) -> str:
    from tests.console.test_clean import in_terminal as run

    return run(command(*words), env).replace("\r\n", "\n")


def read_until(terminal: int, text: bytes, seconds: float = 15.0) -> bytes:
    """What a terminal shows until this is part of it."""
    shown, end = b"", time.monotonic() + seconds
    while text not in shown:
        assert time.monotonic() < end, shown
        shown += os.read(terminal, 65536)
    return shown


# --- trust -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["2", "GPU-2"])
def test_a_gpu_can_be_trusted_again(gpu_agent: FakeAgent, fleet: Path, reference: str) -> None:
    ran = qd(fleet, "gpus", "--trust", reference, "--why", "reset and tested", "--yes")
    assert (ran.code, ran.out) == (0, "GPU 2 of box is trusted again; nothing moves back to it by itself\n")
    (asked,) = gpu_agent.asked("POST /v1/gpus/")
    assert asked.path == "/v1/gpus/GPU-2/trust"
    assert json.loads(asked.body) == {"why": "reset and tested"}
    assert asked.headers["operation-id"]


def test_trusting_a_gpu_gives_its_operation_as_json(gpu_agent: FakeAgent, fleet: Path) -> None:
    ran = qd(fleet, "gpus", "--trust", "2", "--yes", "--json")
    (item,) = json.loads(ran.out)["items"]
    assert (item["host"], item["kind"], item["target"], item["state"]) == ("box", "trust-gpu", "GPU-2", "succeeded")


@pytest.mark.parametrize("reference", ["7", "1.0", "MIG-1-0", "GPU"])
def test_only_a_whole_gpu_of_the_host_can_be_trusted(gpu_agent: FakeAgent, fleet: Path, reference: str) -> None:
    ran = qd(fleet, "gpus", "--trust", reference, "--yes")
    assert ran.code == 2
    assert f"box has no GPU {reference}" in ran.err and "its GPUs: 0 (GPU-0)" in ran.err
    assert gpu_agent.asked("POST") == []


def test_without_an_answer_nothing_is_trusted(gpu_agent: FakeAgent, fleet: Path) -> None:
    ran = qd(fleet, "gpus", "--trust", "2")
    assert ran.code != 0
    assert gpu_agent.asked("POST") == []


def test_trusting_and_watching_at_once_is_a_mistake(gpu_agent: FakeAgent, fleet: Path) -> None:
    assert qd(fleet, "gpus", "--trust", "2", "--watch").code == 2
