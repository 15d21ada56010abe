"""Envoy's statistics, read: exact text in, figures out."""

from __future__ import annotations

import json

import pytest

from quarterdeck_agent.drivers.envoy_stats import (
    Activity,
    Latencies,
    Readings,
    cluster_activity,
    cluster_stats,
    parse_endpoints,
    parse_histograms,
    parse_stats,
    quantile,
)


def test_numbers_and_texts_are_told_apart_and_histograms_left_out() -> None:
    raw = b'a.version_text: "v: 1"\ncluster.a.1.upstream_rq_active: 3\nx: P0(1,2) P25(1,2)\ny: No recorded values\n\n'

    assert parse_stats(raw) == Readings({"cluster.a.1.upstream_rq_active": 3}, {"a.version_text": "v: 1"})


def test_a_counter_of_refusals_that_rose_is_told() -> None:
    before = Readings({"cds.update_rejected": 1, "lds.update_failure": 2})
    now = Readings({"cds.update_rejected": 2, "lds.update_failure": 2, "cluster.a.1.upstream_rq_active": 9})

    assert now.refused_since(before) == ["cds.update_rejected"]


def readings(cluster: str, **numbers: int) -> Readings:
    return Readings({f"cluster.{cluster}.{name}": value for name, value in numbers.items()})


@pytest.mark.parametrize(
    ("running", "queued", "left", "held"),
    [(0, 0, 100, 0), (0, 0, 60, 40), (40, 0, 60, 0), (10, 5, 60, 25), (3, 0, 100, 0)],
)
def test_held_requests_are_the_retries_taken_that_neither_run_nor_queue(
    running: int, queued: int, left: int, held: int
) -> None:
    seen = readings("a.b.1", upstream_rq_active=running, upstream_rq_pending_active=queued)
    seen.numbers["cluster.a.b.1.circuit_breakers.default.remaining_retries"] = left

    activity = cluster_activity(seen, {"a.b.1": 100})["a.b.1"]
    assert activity == Activity(running, queued, held)
    assert activity.active == running + queued + held


def test_requests_per_endpoint_add_up_over_clusters_and_leave_the_placeholder_out() -> None:
    raw = (
        b"a.1::10.0.0.1:80::rq_active::2\na.2::10.0.0.1:80::rq_active::1\na.2::/none.sock::rq_active::0\n"
        b"a.2::10.0.0.1:80::rq_total::99\na.2::default_priority::max_connections::4\nb.1::[::1]:80::rq_active::0\n"
    )

    assert parse_endpoints(raw, {"b.1": Activity(queued=4)}) == {"10.0.0.1:80": 3, "[::1]:80": 4}


def test_latencies_count_only_what_came_since_the_last_reading() -> None:
    latencies = Latencies()
    latencies.since({"a.1": {(1.0, 0.1): 100}})

    assert latencies.since({"a.1": {(1.0, 0.1): 100, (50.0, 1.0): 10}})["a.1"] == {(1.0, 0.1): 0, (50.0, 1.0): 10}
    assert latencies.since({"a.1": {(2.0, 0.1): 5}})["a.1"] == {(2.0, 0.1): 5}, "the cluster began anew"


def test_quantiles_are_seconds_and_none_without_values() -> None:
    bins = {(10.0, 0.0): 90, (100.0, 10.0): 10}

    assert quantile(bins, 0.5) == 0.01
    assert quantile(bins, 0.99) == pytest.approx(0.109)
    assert quantile({}, 0.5) is None
    assert quantile({(1.0, 1.0): 0}, 0.5) is None


def test_a_clusters_figures_come_together() -> None:
    seen = readings("a.1", upstream_rq_completed=10, upstream_rq_5xx=2, upstream_rq_pending_overflow=1)
    bins = {"totals": [{"lower_bound": 20, "width": 0, "count": 10}], "name": "cluster.a.1.upstream_rq_time"}
    histograms = parse_histograms(json.dumps({"stats": [{"histograms": {"details": [bins]}}]}).encode())

    found = cluster_stats(seen, {"a.1": Activity(3, 2, 1)}, histograms)["a.1"]
    assert (found.total, found.errors, found.refused, found.active, found.held) == (10, 2, 1, 3, 3)
    assert (found.p50, found.p95, found.p99) == (0.02, 0.02, 0.02)
