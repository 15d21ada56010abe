"""Deploying and its relatives: waiting, giving up, losing, failing; what is asked for is never lost by a cut."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from quarterdeck_agent import protocol as p
from tests.console.fake_agent import AT, OPERATION, REVISION, STATUS, FakeAgent, Reply, Request, problem
from tests.console.running import Ran, command, environment, qd, write_fleet
from tests.console.test_clean import in_terminal

RUNNING = replace(OPERATION, state=p.OperationState.RUNNING, steps=(), finished_at=None)


def running(agent: FakeAgent) -> None:
    """Let the next change be taken and stay under way."""
    agent.operation = RUNNING
    agent.status = replace(STATUS, operations=(RUNNING,))


def started(fleet: Path, agent: FakeAgent, *arguments: str) -> subprocess.Popen[bytes]:
    """A `qd` that has asked for its change and waits for it."""
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(fleet),
        start_new_session=True,
    )
    agent.wait_for(lambda: bool(agent.asked("GET /v1/watch")))
    return process


def ended(process: subprocess.Popen[bytes]) -> Ran:
    out, err = process.communicate(timeout=30)
    return Ran(process.returncode, out.decode(), err.decode())


def test_a_deploy_sends_what_was_said_and_nothing_else(agent: FakeAgent, fleet: Path, tmp_path: Path) -> None:
    (tmp_path / "prod.env").write_text("# a comment\nMODE=slow\nexport QUOTED='a b'\n\n")
    ran = qd(
        fleet, "deploy", "digits:2", "--replicas", "2", "--handover", "hold", "--env-file", str(tmp_path / "prod.env"),
        "--env", "MODE=fast", "--env", "API_KEY", "--warm", "30", "--dwell", "0", "--no-golden", "--why", "better",
        "--limit", "in_flight=8", "--if-match", "2", extra={"API_KEY": "s3cret"},
    )  # fmt: skip
    assert ran.code == 0
    (request,) = agent.asked("PUT /v1/deployments/digits")
    body = request.json()
    assert body["env"] == {"MODE": "fast", "QUOTED": "a b", "API_KEY": "s3cret"}
    assert (body["replicas"], body["handover"], body["warm"], body["dwell"]) == (2, "hold", 30.0, 0.0)
    assert (body["golden"], body["why"]) == (False, "better")
    assert (body["limits"]["in_flight"], body["limits"]["queue"]) == (8, 512)
    assert request.headers["if-match"] == "2"
    assert len(request.headers["operation-id"]) == 32
    assert "s3cret" not in ran.out + ran.err


def test_what_is_not_said_stays_as_it_is(agent: FakeAgent, fleet: Path) -> None:
    assert qd(fleet, "deploy", "digits:2").code == 0
    body = agent.asked("PUT")[0].json()
    assert {key: value for key, value in body.items() if value is not None} == {"version": "digits:2", "why": ""}


@pytest.mark.parametrize(
    "arguments",
    [
        ["deploy", "0123abcd"],
        ["deploy", "digits:2", "--env", "1X=2"],
        ["deploy", "digits:2", "--env", "NOT_SET_ANYWHERE"],
        ["deploy", "digits:2", "--limit", "speed=3"],
        ["deploy", "digits:2", "--limit", "queue=fast"],
        ["deploy", "digits:2", "--env-file", "/nowhere.env"],
        ["scale", "digits", "-1"],
        ["rollback"],
        ["no-such-verb"],
        ["status", "--no-such-option"],
    ],
)
def test_a_wrong_command_line_is_usage_and_asks_nobody(arguments: list[str], agent: FakeAgent, fleet: Path) -> None:
    ran = qd(fleet, *arguments)
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert ran.out == ""
    assert not agent.asked("PUT") + agent.asked("POST")


def test_a_deploy_is_followed_to_its_end(agent: FakeAgent, fleet: Path) -> None:
    running(agent)
    process = started(fleet, agent, "deploy", "digits:2")
    step = p.StepRecord("start replica", "done", AT, 1.25)
    agent.push_event(p.Delta("operation", "op-2", replace(RUNNING, steps=(step,))))
    done = replace(OPERATION, steps=(step,), finished_at=AT + timedelta(seconds=3))
    agent.push_event(p.Delta("operation", "op-2", done))
    ran = ended(process)
    assert ran.code == 0
    assert ran.out == "digits on box: deploy digits:2: succeeded after 3.0 s\n"
    assert ran.err.count("✓ start replica (1.2 s)") == 1


def test_a_failed_deploy_says_why_and_shows_the_last_lines(agent: FakeAgent, fleet: Path) -> None:
    failure = p.Failure(AT, "golden requests", p.FailureReason.GOLDEN_MISMATCH, "off", last_lines=("last words",))
    failed = replace(OPERATION, state=p.OperationState.FAILED, code="golden_mismatch", detail="golden request 1 is off")
    agent.operation = failed
    revision = replace(REVISION, failure=failure)
    agent.answers["GET /v1/deployments/digits"] = Reply(p.DeploymentDetail(STATUS.deployments[0], (revision,)))
    ran = qd(fleet, "deploy", "digits:2")
    assert ran.code == 1
    assert "golden request 1 is off" in ran.err
    assert "| last words" in ran.err
    told = qd(fleet, "deploy", "digits:2", "--json")
    assert told.code == 1
    assert told.json["items"][0]["state"] == "failed"
    assert told.json["errors"][0]["code"] == "golden_mismatch"


def test_a_lost_race_is_a_conflict_and_names_the_winner(agent: FakeAgent, fleet: Path) -> None:
    agent.answers["PUT /v1/deployments/digits"] = problem(
        409, "conflict", "generation is 3 by now", operation="op-winner", hint="look and try again"
    )
    ran = qd(fleet, "deploy", "digits:2", "--if-match", "2")
    assert ran.code == 7
    assert "op-winner" in ran.err
    told = qd(fleet, "deploy", "digits:2", "--if-match", "2", "--json")
    assert told.json["error"]["operation"] == "op-winner"
    agent.answers.clear()
    agent.operation = replace(OPERATION, state=p.OperationState.SUPERSEDED)
    assert qd(fleet, "deploy", "digits:2").code == 7


def test_a_wait_that_takes_too_long_times_out_and_says_that_it_goes_on(agent: FakeAgent, fleet: Path) -> None:
    running(agent)
    ran = qd(fleet, "deploy", "digits:2", "--timeout", "0.3")
    assert ran.code == 8
    assert "it goes on there" in ran.err
    assert "qd operations op-2" in ran.err


def test_not_waiting_returns_when_it_is_taken(agent: FakeAgent, fleet: Path) -> None:
    running(agent)
    ran = qd(fleet, "deploy", "digits:2", "--no-wait", "--json")
    assert ran.code == 0
    assert ran.json["items"][0]["state"] == "running"
    assert not agent.asked("GET /v1/watch")


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_ends_the_wait_and_not_the_deploy(as_json: bool, agent: FakeAgent, fleet: Path) -> None:
    running(agent)
    process = started(fleet, agent, "deploy", "digits:2", *(["--json"] if as_json else []))
    process.send_signal(signal.SIGINT)
    ran = ended(process)
    assert ran.code == 130
    said = json.loads(ran.out)["error"]["detail"] if as_json else ran.err
    assert "goes on on box" in said
    assert "Traceback" not in ran.err
    assert [request.path for request in agent.asked("PUT") + agent.asked("POST") + agent.asked("DELETE")] == [
        "/v1/deployments/digits"
    ]


def test_a_wait_survives_a_cut_and_learns_what_it_missed(agent: FakeAgent, fleet: Path) -> None:
    running(agent)
    process = started(fleet, agent, "deploy", "digits:2")
    step = p.StepRecord("start replica", "done", AT, 1.25)
    agent.push_event(p.Delta("operation", "op-2", replace(RUNNING, steps=(step,))))
    assert process.stderr is not None
    assert b"start replica" in process.stderr.readline()
    agent.operation = OPERATION
    agent.status = replace(STATUS, operations=())
    agent.cut_streams()
    ran = ended(process)
    assert ran.code == 0, ran.err
    assert "waiting for it to come back" in ran.err


def test_a_change_whose_answer_was_lost_is_asked_for_again_as_the_same_operation(agent: FakeAgent, fleet: Path) -> None:
    async def lose_the_first(seen: Request) -> Reply:
        if not agent.asked("PUT"):
            agent.requests.append(seen)
            agent.cut_streams()
            raise ConnectionResetError
        return Reply(OPERATION, 202)

    agent.answers["PUT /v1/deployments/digits"] = lose_the_first
    ran = qd(fleet, "deploy", "digits:2")
    assert ran.code == 0, ran.err
    first, second = agent.asked("PUT")[:2]
    assert first.headers["operation-id"] == second.headers["operation-id"]


def test_a_plan_is_a_preview_and_changes_nothing(agent: FakeAgent, fleet: Path) -> None:
    ran = qd(fleet, "deploy", "digits:2", "--plan")
    assert ran.code == 0
    assert "both fit in memory" in ran.out
    assert "version: digits:1 → digits:2" in ran.out
    assert [request.query for request in agent.asked("PUT")] == [{"plan": "true"}]


def test_a_terminal_sees_the_running_step_and_then_only_what_became_of_it(agent: FakeAgent, fleet: Path) -> None:
    step = p.StepRecord("pull image", "running", AT, 0.5, "40 %")
    agent.operation = replace(RUNNING, steps=(step,))
    agent.status = replace(STATUS, operations=(OPERATION,))
    shown = in_terminal(command("deploy", "digits:2"), environment(fleet, {"NO_COLOR": "1"}))
    assert "… pull image (500 ms): 40 %" in shown
    assert shown.rstrip().endswith("digits on box: deploy digits:2: succeeded after 3.0 s")
    piped = qd(fleet, "deploy", "digits:2")
    assert "pull image" not in piped.err
    assert "✓ golden requests" in piped.err


# --- asking a person -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "removed"), [(b"\n", False), (b"n\n", False), (b"y\n", True)])
def test_removing_asks_on_a_terminal_and_no_is_the_default(
    typed: bytes, removed: bool, agent: FakeAgent, fleet: Path
) -> None:
    shown = in_terminal(command("rm", "digits"), environment(fleet), typed)
    assert "[y/N]" in shown
    assert bool(agent.asked("DELETE")) is removed


def test_removing_without_a_terminal_needs_yes(agent: FakeAgent, fleet: Path) -> None:
    ran = qd(fleet, "rm", "digits", stdin=b"y\n")
    assert ran.code == 2
    assert "--yes" in ran.err
    assert not agent.asked("DELETE")
    assert qd(fleet, "rm", "digits", "--yes").code == 0
    assert agent.asked("DELETE /v1/deployments/digits")


def test_a_protected_host_asks_before_any_change(agent: FakeAgent, tmp_path: Path) -> None:
    path = write_fleet(tmp_path / "p.toml", {"box": agent.url}, box="protected = true")
    for verb in (["deploy", "digits:2"], ["rollback", "digits"], ["scale", "digits", "2"], ["restart", "digits"]):
        assert qd(path, *verb).code == 2
    assert not agent.asked("PUT") + agent.asked("POST")
    assert qd(path, "rollback", "digits", "--yes").code == 0
    assert qd(path, "deploy", "digits:2", "--plan").code == 0
