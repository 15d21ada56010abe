"""Remote text is harmless when it leaves the client."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quarterdeck_agent import protocol as p
from quarterdeck_console.clean import clean, clean_all, clean_line
from quarterdeck_console.client import decode
from tests.console.fake_agent import DEPLOYMENT, REVISION, STATUS, VERSION, FakeAgent, Reply, problem
from tests.console.running import command, environment, qd

HOSTILE = "a\x1b[2Jb\x1b]52;c;ZXZpbA==\x07c\x9bd\x85e\u202ef\u200bg\x7fh\ri\x00j[red]k\ufeffl\u2028m"
FORBIDDEN = "\x1b\x07\x9b\x85\u202e\u200b\x7f\x00\ufeff\u2028"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain ünïcödé 漢字\tand\nlines", "plain ünïcödé 漢字\tand\nlines"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u200bb", "a\\u200bb"),
        ("line\rover", "line\\rover"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_controls_become_visible_and_text_stays(raw: str, shown: str) -> None:
    assert clean(raw) == shown


def test_a_cell_is_one_line() -> None:
    assert clean_line("a\nb\tc") == "a\\nb\\tc"


@given(st.text())
def test_cleaning_is_final(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert not any((ord(each) < 32 and each not in "\n\t") or 0x7F <= ord(each) < 0xA0 for each in once)


def test_keys_of_objects_are_cleaned_too() -> None:
    assert clean_all({"\x1b": ["\x9b", {"\u202e": 1}]}) == {"\\x1b": ["\\x9b", {"\\u202e": 1}]}


@given(st.text())
def test_every_string_of_a_decoded_answer_is_clean(text: str) -> None:
    spec = p.Spec(version="v", label=text, env={text: text})
    seen = decode(msgspec.json.encode(spec), p.Spec, "box")
    assert seen.label == clean(text)
    assert seen.env == {clean(text): clean(text)}


def _hostile(agent: FakeAgent) -> None:
    status = replace(
        STATUS,
        deployments=(replace(DEPLOYMENT, summary=HOSTILE, label=HOSTILE, by=HOSTILE),),
        info=replace(STATUS.info, engine=HOSTILE),
        parts=(p.Part("engine", p.PartState.FAILED, DEPLOYMENT.since, HOSTILE, HOSTILE),),
    )
    version = replace(VERSION, label=HOSTILE, config={HOSTILE: HOSTILE})
    failure = p.Failure(DEPLOYMENT.since, HOSTILE, p.FailureReason.EXITED, HOSTILE, last_lines=(HOSTILE,))
    revision = replace(REVISION, why=HOSTILE, failure=failure)
    agent.status = status
    agent.operation = replace(agent.operation, summary=HOSTILE, detail=HOSTILE, state=p.OperationState(HOSTILE))
    agent.lines = tuple(replace(line, text=HOSTILE, replica=HOSTILE) for line in agent.lines)
    agent.answers |= {
        "GET /v1/versions": Reply((version,)),
        "GET /v1/deployments/digits": Reply(p.DeploymentDetail(status.deployments[0], (revision,), version)),
        "GET /v1/deployments/digits/revisions": Reply((revision,)),
        "GET /v1/doctor": Reply((p.Check(HOSTILE, "failed", HOSTILE, HOSTILE),)),
        "PUT /v1/deployments/digits": problem(409, "conflict", HOSTILE, hint=HOSTILE, operation=HOSTILE),
    }


VERBS = [
    "status", "describe digits", "history digits", "versions", "hosts", "logs digits", "operations", "doctor",
    "deploy digits:2", "operations op-2",
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_no_raw_control_of_a_remote_reaches_a_terminal(verb: str, agent: FakeAgent, fleet: Path) -> None:
    _hostile(agent)
    shown = in_terminal(command(*verb.split()), environment(fleet, {"TERM": "xterm", "NO_COLOR": "1"}))
    assert "\\x1b[2J" in shown, "the hostile text was not shown at all"
    assert not [each for each in shown.replace("\r\n", "\n") if each in FORBIDDEN]


@pytest.mark.parametrize("verb", VERBS)
def test_json_of_hostile_text_is_clean_too(verb: str, agent: FakeAgent, fleet: Path) -> None:
    _hostile(agent)
    ran = qd(fleet, *verb.split(), "--json")
    assert "\\\\x1b[2J" in ran.out
    assert not [each for each in ran.out if each in FORBIDDEN]


def test_an_argument_is_as_harmless_as_a_remote(agent: FakeAgent, fleet: Path) -> None:
    shown = in_terminal(command("push", "/tmp/\x1b]52;c;eA==\x07"), environment(fleet, {"NO_COLOR": "1"}))
    assert "\\x1b]52" in shown
    assert "\x1b" not in shown


def test_colour_is_for_terminals_and_can_be_refused(agent: FakeAgent, fleet: Path) -> None:
    assert "\x1b[32mserving" in in_terminal(command("status"), environment(fleet, {"TERM": "xterm"}))
    assert "\x1b" not in in_terminal(command("status"), environment(fleet, {"TERM": "xterm", "NO_COLOR": "1"}))
    assert "\x1b" not in in_terminal(command("status"), environment(fleet, {"TERM": "dumb"}))
    assert "\x1b" not in qd(fleet, "status").out
    assert "\x1b[32mserving" in qd(fleet, "status", extra={"FORCE_COLOR": "1"}).out


def in_terminal(words: list[str], env: dict[str, str], typed: bytes = b"") -> str:
    """Everything a command writes to its terminal, until it ends."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True)
    os.close(theirs)
    if typed:
        os.write(ours, typed)
    shown, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                chunk = os.read(ours, 65536)
            except OSError:
                break
            if not chunk:
                break
            shown += chunk
    process.wait(10)
    os.close(ours)
    return shown.decode("utf-8", "surrogateescape")
