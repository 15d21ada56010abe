"""One revision replaces another on a real host under load: nothing fails, whatever the new version does."""

from __future__ import annotations

import http.client
import threading
from pathlib import Path

from tests.end_to_end.bundles import QUICK, deployed, golden, push
from tests.end_to_end.rig import Agent, Load, until


def test_an_overlap_under_load_fails_no_request_and_a_rollback_to_the_warm_one_neither(
    host: Agent, tmp_path: Path
) -> None:
    deployed(host, tmp_path, "1")
    second = push(host, tmp_path, "2", golden=golden("two"), answer="two")
    with Load(host, "toy") as load:
        host.must("deploy", second, *QUICK)
        until(lambda: load.count()["2"] > 20, "the new version answers")
        host.must("rollback", "toy")
        after = len(load.answers)
        until(lambda: len(load.answers) > after + 40, "calls go on")
        assert {answer["version"] for _, answer in load.answers[after + 8 :]} == {"1"}
    assert load.failures == []
    revisions = host.revisions("toy")
    assert [r["number"] for r in revisions] == [3, 2, 1]
    assert revisions[0]["rollback_of"] == 1
    assert [r["outcome"] for r in revisions] == ["serving", "replaced", "replaced"]


def test_a_golden_mismatch_is_refused_and_recorded_while_the_old_version_serves(host: Agent, tmp_path: Path) -> None:
    deployed(host, tmp_path, "1")
    wrong = push(host, tmp_path, "2", golden=golden("right"), answer="wrong")
    with Load(host, "toy") as load:
        ran = host.qd("deploy", wrong, *QUICK)
    assert ran.code == 1
    assert "golden" in ran.err + ran.out and "first" in ran.err + ran.out
    assert load.failures == [] and set(load.count()) == {"1"}
    failure = host.revisions("toy")[0]["failure"]
    assert failure["step"] == "golden" and failure["reason"] == "golden_mismatch"
    assert any("listening" in line for line in failure["last_lines"])
    assert {change["field"] for change in failure["changes"]} >= {"version"}
    until(lambda: len(host.deployment("toy")["replicas"]) == 1, "the refused replica is gone")
    logs = host.must("logs", "toy", "--revision", "2").out
    assert "listening" in logs


def test_a_version_that_exits_is_refused_with_its_exit_code_and_last_words(host: Agent, tmp_path: Path) -> None:
    deployed(host, tmp_path, "1")
    broken = push(host, tmp_path, "2", mode="exit=7")
    assert host.qd("deploy", broken, *QUICK).code == 1
    failure = host.revisions("toy")[0]["failure"]
    assert failure["exit_code"] == 7
    assert any("exiting as asked with 7" in line for line in failure["last_lines"])
    assert host.call("toy")[1]["version"] == "1"


def test_a_hold_answers_every_request_that_arrives_during_the_swap(host: Agent, tmp_path: Path) -> None:
    deployed(host, tmp_path, "1", "--warm", "0")
    second = push(host, tmp_path, "2", mode="ready_after=2", golden=golden("two"), answer="two")
    with Load(host, "toy", threads=2) as load:
        deploying = threading.Thread(target=lambda: host.must("deploy", second, "--handover", "hold", *QUICK))
        deploying.start()
        until(lambda: host.deployment("toy")["state"] == "holding", "requests are held")
        answers: list[tuple[int, object]] = []
        callers = [threading.Thread(target=lambda: answers.append(host.call("toy", timeout=60))) for _ in range(100)]
        for caller in callers:
            caller.start()
        deploying.join()
        for caller in callers:
            caller.join()
    assert [status for status, _ in answers] == [200] * 100
    assert load.failures == []
    assert host.deployment("toy")["label"] == "toy:2"
    steps = [step["name"] for step in host.revisions("toy")[0]["steps"]]
    assert steps.index("drain") < steps.index("start") < steps.index("golden")


def test_a_hold_whose_new_version_never_gets_ready_restores_the_old_one_and_loses_nobody(
    host: Agent, tmp_path: Path
) -> None:
    deployed(host, tmp_path, "1", "--warm", "0")
    never = push(host, tmp_path, "2", mode="never_ready", start_timeout=3.0)
    with Load(host, "toy", threads=3) as load:
        ran = host.qd("deploy", never, "--handover", "hold", *QUICK)
        assert ran.code == 1
        before = len(load.answers)
        until(lambda: len(load.answers) > before + 20, "the old version answers again")
    assert load.failures == []
    assert set(load.count()) == {"1"}
    found = until(lambda: (d := host.deployment("toy"))["state"] == "serving" and d, "it serves again")
    assert found["live_revision"] == 1
    assert host.revisions("toy")[0]["failure"]["reason"] == "never_ready"


def test_streams_are_not_cut_by_twenty_switches(host: Agent, tmp_path: Path) -> None:
    deployed(host, tmp_path, "1")
    deployed(host, tmp_path, "2")
    chunks: list[int] = []

    def stream() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=60)
        connection.request("GET", "/toy/stream?chunks=60&every=0.1")
        text = connection.getresponse().read().decode()
        chunks.append(text.count("data:"))
        connection.close()

    streams = [threading.Thread(target=stream) for _ in range(5)]
    with Load(host, "toy") as load:
        for thread in streams:
            thread.start()
        for _ in range(20):
            host.must("rollback", "toy")
        for thread in streams:
            thread.join()
    assert load.failures == []
    assert chunks == [60] * 5
    assert set(load.count()) == {"1", "2"}
    assert host.revisions("toy")[0]["number"] == 22


def test_two_deploys_at_once_one_wins_and_the_other_is_told_by_whom(host: Agent, tmp_path: Path) -> None:
    deployed(host, tmp_path, "1")
    second, third = push(host, tmp_path, "2"), push(host, tmp_path, "3")
    generation = host.deployment("toy")["generation"]
    results: list[tuple[int, dict[str, object]]] = []

    def put(version: str) -> None:
        body = {"version": version, "dwell": 0.2}
        results.append(host.api("PUT", "/v1/deployments/toy", body, {"If-Match": str(generation)}))

    callers = [threading.Thread(target=put, args=(version,)) for version in (second, third)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    (won, operation), (lost, problem) = sorted(results, key=lambda result: result[0])
    assert (won, lost) == (202, 409)
    assert problem["code"] == "conflict" and problem["operation"] == operation["id"]
    host.until_settled("toy", 2)


def test_scale_restart_stop_and_remove(host: Agent, tmp_path: Path) -> None:
    deployed(host, tmp_path, "1")
    with Load(host, "toy") as load:
        host.must("scale", "toy", "3")
        assert host.deployment("toy")["replicas_ready"] == 3
        until(lambda: len(load.count("pid")) == 3, "three replicas answer")
        old = {replica["handle"] for replica in host.deployment("toy")["replicas"]}
        host.must("restart", "toy")
        found = host.deployment("toy")
        assert found["replicas_ready"] == 3
        assert not old & {r["handle"] for r in found["replicas"] if r["revision"] == found["live_revision"]}
        host.must("scale", "toy", "1")
    assert load.failures == []
    host.must("stop", "toy", "--yes")
    status, problem = host.call("toy")
    assert status == 503 and problem["code"] == "stopped"
    until(lambda: host.deployment("toy")["replicas"] == [], "its replicas are gone")
    host.must("rm", "toy", "--yes")
    until(lambda: host.api("GET", "/v1/deployments/toy")[0] == 404, "it is gone")
    until(lambda: host.call("toy")[0] == 404, "its route is gone")
    deployed(host, tmp_path, "1")
    assert host.revisions("toy")[0]["number"] > 4


def test_a_replica_that_is_killed_comes_back_and_requests_wait_for_it(host: Agent, tmp_path: Path) -> None:
    deployed(host, tmp_path, "1")
    status, answer = host.call("toy")
    with Load(host, "toy", threads=2) as load:
        host.call("toy", path="/crash")
        until(lambda: len(load.count("pid")) == 2, "another process answers")
    assert status == 200 and answer["pid"] in load.count("pid")
    # Only a request that was with the replica when it ended can fail; those that came later wait.
    assert len(load.failures) <= 2, load.failures
    logs = host.must("logs", "toy", "--tail", "50").out
    assert logs.count("listening") == 2
