"""The real program on a real pseudo-terminal: what bytes it sends, and what it leaves behind when it is ended."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from quarterdeck_agent import protocol as p
from quarterdeck_console.clean import clean
from tests.console.fake_agent import (
    AT,
    DEPLOYMENT,
    LINES,
    OPERATION,
    REVISION,
    STATUS,
    VERSION,
    FakeAgent,
    Handler,
    Reply,
    Request,
)
from tests.console.running import command, environment, fleet_of

HOSTILE = "[/x][@click=app.quit]x[/]\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\u202egnp\n"
LEFT_ON = (b"\x1b[?1049l", b"\x1b[?1000l", b"\x1b[?1006l", b"\x1b[?2004l", b"\x1b[?25h")


class Terminal:
    """The program on its own terminal of 120 by 30, and every byte that it has sent."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process, self._descriptor, self.bytes = process, descriptor, b""

    def read(self, seconds: float = 0.05) -> bool:
        """Take what is there; false at the end."""
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        if not ready:
            return True
        try:
            self.bytes += os.read(self._descriptor, 1 << 16)
        except OSError:
            return False
        return True

    def until(self, condition: Callable[[bytes], object], what: str, seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not condition(self.bytes):
            assert time.monotonic() < end, f"not within {seconds:g} s: {what}\n{self.bytes[-3000:]!r}"
            assert self.read() or condition(self.bytes), f"it ended before {what}\n{self.bytes[-3000:]!r}"

    def settle(self, quiet: float = 0.3, most: float = 3.0) -> None:
        """Read until nothing came for a while: a key that follows esc too soon would be read as alt with it."""
        end = time.monotonic() + most
        last, heard = time.monotonic(), len(self.bytes)
        while time.monotonic() < min(end, last + quiet) and self.read(0.05):
            if len(self.bytes) != heard:
                last, heard = time.monotonic(), len(self.bytes)

    def press(self, keys: bytes) -> None:
        os.write(self._descriptor, keys)

    def ended(self, seconds: float = 20.0) -> int:
        """Its exit code, with everything read that it sent."""
        end = time.monotonic() + seconds
        while self.read() and self.process.poll() is None:
            assert time.monotonic() < end, "it does not end"
        while self.read(0.2) and select.select([self._descriptor], [], [], 0)[0]:
            pass
        return self.process.wait(5)

    @property
    def text(self) -> str:
        """What it wrote, without the sequences that move the cursor and colour."""
        return re.sub(r"\x1b(\[[0-9;?<>=$]*[a-zA-Z]|\][^\x07]*\x07|[()=>].?)", "", self.bytes.decode(errors="replace"))


@contextmanager
def terminal(fleet: Path, *arguments: str, **extra: str) -> Iterator[Terminal]:
    """`qd` without a verb, on a terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    surroundings = environment(fleet, {"TERM": "xterm-256color", "QUARTERDECK_CONSOLE": "/nonexistent", **extra})
    process = subprocess.Popen(
        command(*arguments), stdin=slave, stdout=slave, stderr=slave, env=surroundings, start_new_session=True
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)


def test_without_a_verb_the_console_opens_and_q_ends_it_cleanly(fleet: Path) -> None:
    with terminal(fleet) as t:
        t.until(lambda sent: b"digits" in sent, "the deployment is shown")
        t.press(b"q")
        assert t.ended() == 0
        assert all(reset in t.bytes for reset in LEFT_ON)


def test_the_flag_makes_the_whole_console_read_only(fleet: Path, agent: FakeAgent) -> None:
    with terminal(fleet, "--read-only") as t:
        t.until(lambda sent: b"digits" in sent and b"read-only" in sent, "the console says that it is read-only")
        t.press(b"X")
        t.press(b"y")  # its dialog would be answered; without one this is the YAML
        t.until(lambda sent: b"yaml of digits" in sent, "the YAML")
        t.press(b"qq")
        assert t.ended() == 0
        assert not [each for each in agent.requests if each.method != "GET"]


def test_the_first_frame_comes_also_when_no_host_ever_answers(tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "box", stall=True) as agent, terminal(fleet_of(tmp_path, agent)) as t:
        t.until(lambda sent: b"Quarterdeck" in sent and b"connecting" in sent, "the first frame")
        t.press(b"q")
        assert t.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(fleet: Path, number: signal.Signals) -> None:
    with terminal(fleet) as t:
        t.until(lambda sent: b"digits" in sent, "the console is there")
        t.process.send_signal(number)
        assert t.ended() == 128 + number
        for reset in LEFT_ON:
            assert reset in t.bytes, reset


def _evil_host() -> p.HostStatus:
    evil = replace(
        DEPLOYMENT, name=HOSTILE, label=HOSTILE, by=HOSTILE, summary=HOSTILE, state=p.DeploymentState.DEGRADED
    )
    xid = p.XidEvent(AT, 79, HOSTILE, HOSTILE)
    return replace(
        STATUS, deployments=(evil,), operations=(replace(OPERATION, target=HOSTILE, by=HOSTILE, detail=HOSTILE),),
        parts=(p.Part("nvml", p.PartState.FAILED, STATUS.parts[0].since, detail=HOSTILE),),
        gpus=(p.Gpu(0, HOSTILE, HOSTILE, 80 << 30, 1 << 30, 0.5, why=HOSTILE),), traffic=(),
        gpu_facts=(p.GpuFacts(HOSTILE, HOSTILE, HOSTILE, xids=(xid,), labels=(HOSTILE,)),),
        gpu_uses=(p.GpuUse(HOSTILE, (p.GpuProcess(7, 1 << 30, user=HOSTILE, command=HOSTILE),)),),
        versions=(_EVIL_VERSION,),
    )  # fmt: skip


_EVIL_VERSION = replace(VERSION, label=HOSTILE, name=HOSTILE, runtime=HOSTILE, by=HOSTILE, card=f"# {HOSTILE}")
AROUND = (
    "y esc J esc d x v esc esc l esc D esc R esc C esc T esc X esc 2 z esc P [/x] esc X esc 3 z esc 4 v z esc 1 "
    ":logs esc / [/x] enter esc ? esc"
)
"""Keys to every screen and dialog, and back."""


def test_names_made_to_harm_a_terminal_reach_it_as_visible_text(tmp_path: Path) -> None:
    status, name = _evil_host(), clean(HOSTILE)
    failure = p.Failure(AT, HOSTILE, p.FailureReason.EXITED, HOSTILE, last_lines=(HOSTILE,))
    revision = replace(REVISION, deployment=HOSTILE, why=HOSTILE, by=HOSTILE, handover_why=HOSTILE, failure=failure)
    detail = p.DeploymentDetail(status.deployments[0], (revision,), _EVIL_VERSION)
    line = msgspec.json.encode(replace(LINES[0], text=HOSTILE, deployment=HOSTILE)) + b"\n"

    async def said(_request: Request) -> Reply:
        async def lines() -> AsyncIterator[bytes]:
            yield line
            await asyncio.sleep(3600)

        return Reply(stream=lines(), media="application/x-ndjson")

    base = f"GET /v1/deployments/{name}"
    answers: dict[str, Reply | Handler] = {base: Reply(detail), f"{base}/logs": said}
    box = FakeAgent(tmp_path / "box", status=status, answers=answers)
    with box as agent, terminal(fleet_of(tmp_path, agent)) as t:
        t.until(lambda sent: b"[@click=app.quit]x[/]" in sent, "the name is shown as it is written")
        for key in AROUND.split():
            t.press({"esc": b"\x1b", "enter": b"\r"}.get(key, key.encode()))
            t.settle()
        assert t.process.poll() is None, "it still runs"
        for wrong in (b"\x1b]52", b"ZXZpbA==\x07", b"\x1b[2J\x9b", "\u202e".encode(), b"\xc2\x9b"):
            assert wrong not in t.bytes, wrong
        assert agent.asked(base) and agent.asked(f"{base}/logs"), [each.path for each in agent.requests]
        assert not [each for each in agent.requests if each.method not in ("GET", "PUT", "POST")]
        assert all(each.query.get("plan") == "true" for each in agent.requests if each.method != "GET")
        t.press(b"\x1b\x1bq")


def test_no_color_counts_only_when_it_is_not_empty(fleet: Path) -> None:
    def colours(sent: bytes) -> set[bytes]:
        found = re.findall(rb"38;2;(\d+;\d+;\d+)", sent) + re.findall(rb"38;5;(\d+)", sent)
        return {each for each in found if len(set(each.split(b";"))) > 1}

    with terminal(fleet, NO_COLOR="", COLORTERM="truecolor") as t:
        t.until(lambda sent: b"digits" in sent, "the console is there")
        assert colours(t.bytes), "an empty NO_COLOR means nothing"
    with terminal(fleet, NO_COLOR="1", COLORTERM="truecolor") as t:
        t.until(lambda sent: b"digits" in sent, "the console is there")
        assert not colours(t.bytes), "grey only"


def test_a_wrong_file_is_told_in_words_before_the_screen_is_taken(tmp_path: Path, fleet: Path) -> None:
    wrong = tmp_path / "console.toml"
    wrong.write_text('[keys]\n"target.deploy" = "ctrl+s"\n')
    with terminal(fleet, QUARTERDECK_CONSOLE=str(wrong)) as t:
        assert t.ended() == 2
        assert "cannot be ctrl+s: it belongs to flow control" in t.text
        assert b"\x1b[?1049h" not in t.bytes


def test_what_is_pasted_after_a_command_confirms_nothing_and_opens_nothing(fleet: Path, agent: FakeAgent) -> None:
    with terminal(fleet) as t:
        t.until(lambda sent: b"digits" in sent, "the deployment is shown")
        t.press(b":stop digits\ryyyJ")
        t.until(lambda _: "y stop" in t.text, "its dialog can be answered")
        assert "yaml of" not in t.text and "json of" not in t.text
        assert all(each.query.get("plan") == "true" for each in agent.requests if each.method != "GET")
        t.press(b"n")
        t.settle()
        t.press(b"\rJ")
        t.until(lambda sent: b"json of digits" in sent, "of what enter opened")
        t.press(b"\x03")
        assert t.ended() == 0


def test_a_pasted_command_is_the_command_lines_and_no_key_of_the_view(fleet: Path, agent: FakeAgent) -> None:
    with terminal(fleet) as t:
        t.until(lambda sent: b"digits" in sent, "the deployment is shown")
        t.press(b":operations\r")
        t.until(lambda sent: b"KIND" in sent and b"OUTCOME" in sent, "operations are shown")
        t.press(b"/-+dXy\r")
        t.until(lambda sent: b"/-+dXy 0 of" in sent, "the filter has all that was typed")
        assert "refresh every" not in t.text
        assert not [each for each in agent.requests if each.method != "GET" or "/deployments" in each.path]
        t.press(b"\x03")
        assert t.ended() == 0
