"""The logs of a simulated agent on a real terminal: cuts, hosts that are late, and bytes made to harm."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from tests.console.fake_agent import AT, LINES, FakeAgent, problem
from tests.console.tui.logs_driving import HOSTILE
from tests.console.tui.test_terminal import Terminal, terminal

LOGS = "GET /v1/deployments/digits/logs"


def open_logs(t: Terminal) -> None:
    t.until(lambda sent: b"digits:2" in sent, "the deployment is shown")
    t.press(b"l")


def shows(t: Terminal, text: str) -> None:
    t.until(lambda _: text in t.text, f"{text!r} is shown")


def test_following_goes_on_after_a_cut_without_gap_or_repeat_and_marks_it(agent: FakeAgent, fleet: Path) -> None:
    with terminal(fleet) as t:
        open_logs(t)
        shows(t, "line 4")
        agent.lines = (*LINES, replace(LINES[0], at=AT + timedelta(seconds=9), text="said meanwhile"))
        agent.cut_streams()
        shows(t, "following goes on when it is back")
        shows(t, "said meanwhile")
        shows(t, "back after")
        t.press(b"q")
        assert len(agent.asked(LOGS)) >= 2


def test_a_host_without_such_logs_yet_is_waited_for(agent: FakeAgent, fleet: Path) -> None:
    agent.answers[LOGS] = problem(404, "not_found", "digits has no logs yet")
    with terminal(fleet) as t:
        open_logs(t)
        shows(t, "digits has no logs yet; following goes on when it is back")
        del agent.answers[LOGS]
        shows(t, "line 4")
        t.press(b"q")


def test_lines_made_to_harm_a_terminal_reach_it_as_text_and_are_copied_as_text(agent: FakeAgent, fleet: Path) -> None:
    agent.lines = (*LINES, replace(LINES[0], at=AT + timedelta(seconds=9), text=HOSTILE))
    with terminal(fleet, TMUX="", STY="") as t:
        open_logs(t)
        shows(t, "[@click=app.quit]press[/]")
        for keys, answer in (
            (b"wt/", "~fuzzy"), (b"press\r", "/press 1"), (b"f", "find: n next"), (b"quit\r", "find quit 1/1"),
            (b"nmjkgGp", "■ ended  the run before"),
        ):  # fmt: skip
            t.press(keys)
            shows(t, answer)
        assert t.process.poll() is None, "it still runs"
        for wrong in (b"\x1b]52", b"aGFja2Vk\x07", b"\x1b[31mred", "\x9b2J".encode(), "\u202e".encode()):
            assert wrong not in t.bytes, wrong
        t.press(b"c")
        t.until(lambda sent: b"\x1b]52;" in sent, "the line is copied")
        found = re.search(rb"\x1b\]52;c;([A-Za-z0-9+/=]*)\x07", t.bytes)
        assert found is not None
        copied = base64.b64decode(found[1]).decode()
        assert "press" in copied
        assert copied.isprintable()
        t.press(b"\x1b\x1bq")
