"""The command line as a whole: help, completion, doctor's verdict, what happens without a terminal."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from quarterdeck_agent import protocol as p
from quarterdeck_console.cli.main import VERBS
from tests.console.fake_agent import OPERATION, FakeAgent, Reply
from tests.console.running import command, environment, qd


def test_without_arguments_it_prints_the_help(fleet: Path) -> None:
    ran = qd(fleet)
    assert ran.code == 0
    assert all(verb in ran.out for verb in VERBS)
    assert "Exit codes:" in ran.out


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_with_examples(verb: str, fleet: Path) -> None:
    ran = qd(fleet, verb, "--help")
    assert ran.code == 0
    assert f"qd {verb}" in ran.out
    if verb != "hosts":
        assert "Examples:" in ran.out
        assert "--json" in ran.out


def test_a_mistyped_verb_gets_a_suggestion(fleet: Path) -> None:
    ran = qd(fleet, "deplyo", "digits:2")
    assert ran.code == 2
    assert "Did you mean 'deploy'?" in ran.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, fleet: Path) -> None:
    ran = qd(fleet, "completion", shell)
    assert ran.code == 0
    assert f"_QD_COMPLETE={shell}_complete" in ran.out


def test_completion_knows_verbs_and_hosts_and_asks_no_agent(agent: FakeAgent, fleet: Path) -> None:
    def complete(words: str, at: str) -> str:
        extra = {"_QD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": at}
        return qd(fleet, extra=extra).out

    assert "plain,rollback" in complete("qd roll", "1")
    assert "plain,box" in complete("qd status --host b", "3")
    assert not agent.requests


def test_doctor_fails_when_a_check_failed_and_not_for_a_warning(agent: FakeAgent, fleet: Path) -> None:
    ran = qd(fleet, "doctor")
    assert ran.code == 0
    assert "3 % free → make room" in ran.out
    agent.answers["GET /v1/doctor"] = Reply((p.Check("gateway", "failed", "Envoy is gone", "start it"),))
    assert qd(fleet, "doctor").code == 1
    agent.answers.clear()
    (agent.folder / "token").chmod(0o644)
    ran = qd(fleet, "doctor")
    assert ran.code == 1
    assert "chmod 600" in ran.out


def test_doctor_has_torch_try_the_gpus_only_when_asked(agent: FakeAgent, fleet: Path) -> None:
    slow = p.Check("torch on GPU 0", "failed", "the product differs from float64's by 3e-1", "drain the GPU")
    agent.answers["GET /v1/doctor/gpus"] = Reply((slow,))
    assert qd(fleet, "doctor").code == 0
    assert not agent.asked("GET /v1/doctor/gpus")
    ran = qd(fleet, "doctor", "--gpu")
    assert ran.code == 1
    assert "3 % free → make room" in ran.out
    assert "torch on GPU 0" in ran.out and "→ drain the GPU" in ran.out
    assert [each["name"] for each in qd(fleet, "doctor", "--gpu", "--json").json["items"]][-1] == "torch on GPU 0"


def test_trying_gpus_may_take_longer_than_other_answers(agent: FakeAgent, fleet: Path) -> None:
    async def slowly(_: object) -> Reply:
        await asyncio.sleep(1.0)
        return Reply((p.Check("torch on GPU 0", "ok", "41 TFLOP/s, 1.9 TB/s"),))

    agent.answers["GET /v1/doctor/gpus"] = slowly
    ran = qd(fleet, "doctor", "--gpu", "--deadline", "0.5")
    assert ran.code == 0, ran.err
    assert "41 TFLOP/s" in ran.out


def test_an_agent_that_cannot_try_its_gpus_is_a_warning(agent: FakeAgent, fleet: Path) -> None:
    ran = qd(fleet, "doctor", "--gpu")
    assert ran.code == 0
    assert "this agent cannot try its GPUs" in ran.out


def test_doctor_of_an_agent_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    ran = qd(tmp_path / "none.toml", "doctor", extra={"QUARTERDECK_HOST": f"unix://{tmp_path}/no.sock"})
    assert ran.code == 5
    assert "qd-agent run" in ran.out


def test_an_operation_is_found_by_the_start_of_its_id(agent: FakeAgent, fleet: Path) -> None:
    agent.operation = replace(OPERATION, id="abcdef012345")
    ran = qd(fleet, "operations", "abcd")
    assert ran.code == 0
    assert "abcdef012345" in ran.out
    assert qd(fleet, "operations", "ffff").code == 3


def test_a_full_device_is_an_error_and_no_traceback(agent: FakeAgent, fleet: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command("status"), stdout=full, stderr=subprocess.PIPE, env=environment(fleet), timeout=60, check=False
        )
    assert ended.returncode == 1
    assert b"Traceback" not in ended.stderr
    assert b"No space left" in ended.stderr


def test_text_that_the_terminals_encoding_lacks_is_escaped(agent: FakeAgent, fleet: Path) -> None:
    ran = qd(fleet, "describe", "digits", extra={"PYTHONIOENCODING": "ascii", "LANG": "C"})
    assert ran.code == 0, ran.err
