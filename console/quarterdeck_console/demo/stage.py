"""A private agent for the demo: its own folders, socket and gateway port, and nothing left of it afterwards.

Everything is done by the real commands, run as processes: `qd-agent run` and `qd ... --json`. What belongs to another
agent of this machine is never touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_DEADLINE = 60.0
STOP_DEADLINE = 20.0
IMAGE_DEADLINE = 900.0


class StageError(Exception):
    """The demo cannot go on; the message says why and where to look."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one `qd` command answered: its words, exit code, JSON and how long it took in seconds."""

    words: tuple[str, ...]
    code: int
    value: dict[str, Any]
    seconds: float

    @property
    def items(self) -> list[dict[str, Any]]:
        return self.value.get("items") or ([self.value["item"]] if "item" in self.value else [])

    @property
    def problem(self) -> str:
        """The first error in words, empty when there is none."""
        errors = self.value.get("errors") or [self.value[key] for key in ("error",) if key in self.value]
        return str(errors[0].get("detail", "")) if errors else ""


class Stage:
    """The private agent and the commands given to it."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.folder = folder
        self.engine = engine
        self.port = _free_port()
        self._agent: subprocess.Popen[bytes] | None = None
        self._log = folder / "agent.log"

    @property
    def url(self) -> str:
        """What a console calls this agent by (QUARTERDECK_HOST)."""
        return f"unix://{self.folder / 'run' / 'agent.sock'}"

    def start(self) -> None:
        """Start the agent and wait until it answers."""
        if self.engine == "docker":
            self._run_agent("runtime-image", deadline=IMAGE_DEADLINE)
        words = self._agent_words("run", "--engine", self.engine, "--gateway-port", str(self.port))
        with self._log.open("ab") as log:
            # In a session of its own: Ctrl-C goes to the demo, which then ends the agent in good order.
            self._agent = subprocess.Popen(
                words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment(), start_new_session=True
            )
        until = time.monotonic() + START_DEADLINE
        while self.qd("status").code != 0:
            if self._agent.poll() is not None or time.monotonic() > until:
                raise StageError(f"the agent does not answer; the end of its log:\n{self._last_words()}")
            time.sleep(0.2)

    def qd(self, *words: str, deadline: float = 300.0) -> Answer:
        """Run one `qd` command with --json. Its exit code is part of the answer, never an error here."""
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "quarterdeck_console", *words, "--json"],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=deadline,
            check=False,
        )
        took = time.monotonic() - began
        return Answer(words, done.returncode, _parsed(done.stdout, done.stderr), took)

    def must(self, *words: str) -> Answer:
        """Run one `qd` command that has to succeed."""
        answer = self.qd(*words)
        if answer.code != 0:
            raise StageError(f"qd {' '.join(words)} ended with {answer.code}: {answer.problem}\n{self._last_words()}")
        return answer

    def stop(self) -> None:
        """Remove what was deployed, end agent and gateway, delete the folder."""
        if self._agent is not None and self._agent.poll() is None:
            for row in self.qd("status", deadline=30).items:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.qd("rm", str(row["name"]), "--yes", "--timeout", "60", deadline=90)
            self._agent.send_signal(signal.SIGTERM)
            try:
                self._agent.wait(STOP_DEADLINE)
            except subprocess.TimeoutExpired:
                self._agent.kill()
                self._agent.wait()
        # The agent never stops its gateway; whoever made the agent for a moment only has to.
        _end_gateway(self.folder / "data" / "gateway" / "envoy.pid")
        _delete(self.folder)

    def _agent_words(self, *words: str) -> list[str]:
        folders = ("--data-folder", str(self.folder / "data"), "--run-folder", str(self.folder / "run"))
        return [sys.executable, "-m", "quarterdeck_agent", words[0], *folders, *words[1:]]

    def _run_agent(self, *words: str, deadline: float) -> None:
        with self._log.open("ab") as log:
            done = subprocess.run(
                self._agent_words(*words),
                stdout=log,
                stderr=log,
                env=self._environment(),
                timeout=deadline,
                check=False,
            )
        if done.returncode:
            raise StageError(f"qd-agent {words[0]} ended with {done.returncode}:\n{self._last_words()}")

    def _environment(self) -> dict[str, str]:
        """This process's environment without settings of another agent."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("QUARTERDECK_")}
        return kept | {"QUARTERDECK_HOST": self.url, "NO_COLOR": "1"}

    def _last_words(self) -> str:
        text = self._log.read_text(errors="backslashreplace") if self._log.exists() else ""
        return "\n".join(text.splitlines()[-15:])


def _parsed(out: str, err: str) -> dict[str, Any]:
    """The command's JSON document, or its stream of them as one list; anything else becomes an error of that shape."""
    try:
        value = json.loads(out)
    except ValueError:
        value = _stream(out)
    if isinstance(value, dict):
        return value
    return {"errors": [{"detail": (err or out).strip()[-500:] or "it said nothing"}]}


def _stream(out: str) -> dict[str, Any] | None:
    try:
        events = [json.loads(line) for line in out.splitlines()]
    except ValueError:
        return None
    found = [event["item"] for event in events if event.get("item") is not None]
    return {"items": found, "errors": []} if events else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_gateway(record: Path) -> None:
    """End the gateway whose record this is, if that very process still lives."""
    try:
        noted = json.loads(record.read_text())
        pid, start = int(noted["pid"]), int(noted["start_time"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    until = time.monotonic() + STOP_DEADLINE
    number = signal.SIGTERM
    while _start_time(pid) == start:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if time.monotonic() > until - STOP_DEADLINE / 2:
            number = signal.SIGKILL
        if time.monotonic() > until:
            return
        time.sleep(0.1)


def _start_time(pid: int) -> int | None:
    """When the process started, in ticks since boot (proc(5), field 22); `None` when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _delete(folder: Path) -> None:
    """Delete a folder; staged bundles are read-only and have to be opened first."""
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def words_shown(words: Sequence[str]) -> str:
    """A command as a person would type it."""
    return shlex.join(("qd", *words))
