"""What short `qd` commands cost in CPU, beside the interpreter itself and an import of click."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median as middle

from tests.benchmarks.figures import Figure
from tests.benchmarks.hosts import ask, finished
from tests.end_to_end.rig import ROOT, agent
from tests.models import trivial_bundle

ROUNDS = 15
QD = ("-m", "quarterdeck_console")
HEAVY = ("textual", "rich", "pydantic", "fastapi", "starlette", "sqlmodel", "sqlalchemy", "docker", "uvicorn", "torch")


@dataclass
class Command:
    """A command line of this interpreter, and the milliseconds of CPU of each run."""

    words: tuple[str, ...]
    runs: list[float] = field(default_factory=list)

    def run(self, environment: Mapping[str, str]) -> None:
        process = subprocess.Popen(
            [sys.executable, *self.words],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, f"{self.words} ended with {process.returncode}"
        self.runs.append((used.ru_utime + used.ru_stime) * 1000)

    @property
    def told(self) -> str:
        return f"{middle(self.runs):.0f} ms (lowest {min(self.runs):.0f})"


def measure(folder: Path) -> Sequence[Figure]:
    """All four commands in turns, against an agent that serves one model."""
    nothing, click = Command(("-c", "pass")), Command(("-c", "import click"))
    version, status = Command((*QD, "version", "--json")), Command((*QD, "status", "--json"))
    with agent(folder / "host") as host:
        host.must("push", str(trivial_bundle(folder / "toy", "toy", "1")))
        finished(host, ask(host, "PUT", "/v1/deployments/toy", {"version": "toy:1", "dwell": 0.0}))
        environment = host.environment() | {"QUARTERDECK_HOST": f"unix://{host.socket}"}
        commands = (nothing, click, version, status)
        for command in commands:  # the first run of each writes byte code
            command.run(environment)
            command.runs.clear()
        for number in range(ROUNDS):
            for command in commands if number % 2 == 0 else commands[::-1]:
                command.run(environment)
        heavy = sorted({name for each in (version, status) for name in _heavy(each, environment)})
    against = f"python -c pass {nothing.told}, python -c 'import click' {click.told}"
    return [
        _figure("qd version --json: CPU", version, 60, against),
        _figure("qd status --json: CPU", status, 150, against),
        Figure("qd: heavy modules loaded by either", len(heavy), at_most=0, baseline=", ".join(heavy or HEAVY)),
    ]


def _figure(name: str, command: Command, bound: float, against: str) -> Figure:
    spread = (min(command.runs), max(command.runs))
    return Figure(name, middle(command.runs), "ms", at_most=bound, spread=spread, baseline=against, needs_quiet=True)


def _heavy(command: Command, environment: Mapping[str, str]) -> set[str]:
    """The heavy packages that a run of it imports, as the interpreter itself tells."""
    words = [sys.executable, "-X", "importtime", *command.words]
    told = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stderr
    imported = set(re.findall(r"\|\s+(\w+)[\w.]*\n", told))
    assert "click" in imported, "the interpreter did not tell what it imports"
    return imported & set(HEAVY)
