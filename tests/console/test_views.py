"""Rows and words: pure functions of what was seen."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from quarterdeck_agent import protocol as p
from quarterdeck_console import state, views
from tests.console.fake_agent import AT, DEPLOYMENT, GPU_STATUS, REVISION, STATUS


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "–"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (2048, "2.0 KiB"), (150 << 10, "150 KiB"),
        ((1 << 20) - 1, "1.0 MiB"), (5 << 40, "5.0 TiB"),
    ],
)  # fmt: skip
def test_sizes(count: int | None, text: str) -> None:
    assert views.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"), (-1.0, "0 s"), (0.085, "85 ms"), (2.44, "2.4 s"), (59.99, "1m00s"), (192.0, "3m12s"),
        (4 * 3600.0 + 300, "4h05m"), (12 * 86400.0, "12d"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert views.duration(seconds) == text


def test_a_measurement_that_is_missing_is_a_dash() -> None:
    assert [views.rate(None), views.ratio(None), views.used(None, 3), views.age(None, AT)] == ["–"] * 4


def test_a_lost_hosts_deployments_stay_and_say_so() -> None:
    seen = state.snapshot(state.FleetState.of(("box",)), "box", STATUS, AT)
    seen = state.lost(seen, "box", "refused", AT)
    (row,) = views.deployments(seen, AT + timedelta(seconds=30)).rows
    assert row.key == ("box", "digits")
    assert row.cells[-1].text == "unreachable for 30s; last seen: serving revision 2"
    assert row.cells[-1].severity is views.Severity.BAD


def test_a_host_that_was_never_seen_is_a_row() -> None:
    seen = state.lost(state.FleetState.of(("box",)), "box", "refused", AT)
    (row,) = views.deployments(seen, AT).rows
    assert [row.cells[0].text, row.cells[2].text, row.cells[-1].text] == ["box", "unreachable", "refused"]


def test_a_state_that_only_a_newer_agent_knows_is_shown_as_it_is() -> None:
    assert views.severity(p.DeploymentState("levitating")) is views.Severity.PLAIN


def test_gpu_memory_of_replicas_and_revisions_is_told_where_there_is_any() -> None:
    (replica,) = DEPLOYMENT.replicas
    gauges = p.ReplicaGauges(replica.id, "digits", 2, gpu_memory=3 << 30)
    assert "GPU MEMORY" not in views.replicas((replica,), (gauges,), AT).columns
    seen = views.replicas((replace(replica, gpus=("GPU-0",)),), (gauges,), AT)
    assert seen.rows[0].cells[seen.columns.index("GPU MEMORY")].text == "3.0 GiB"
    assert "GPU PEAK" not in views.revisions([("box", REVISION)], AT).columns
    told = views.revisions([("box", replace(REVISION, gpu_memory_peak=4 << 30)), ("box", REVISION)], AT)
    place = told.columns.index("GPU PEAK")
    assert [row.cells[place].text for row in told.rows] == ["4.0 GiB", "–"]


def test_a_host_with_a_sick_gpu_is_degraded_and_its_mig_instances_are_no_gpus() -> None:
    seen = state.snapshot(state.FleetState.of(("box",)), "box", GPU_STATUS, AT)
    table = views.hosts(seen, AT)
    cells = dict(zip(table.columns, table.rows[0].cells, strict=True))
    assert (cells["STATE"].text, cells["GPUS"].text) == ("degraded", "3")
    assert cells["DETAIL"].text.startswith("GPU 2 lost: Xid 79")


def test_a_log_line_keeps_its_tabs_and_its_place_on_one_line() -> None:
    line = p.LogLine(AT, "digits", 2, "r-1", "stdout", "a\tb\nc")
    assert views.log_line(line, host="box", replica=True, timestamps=False) == "box digits.2/r-1 a\tb\\nc"
