"""Running `qd` as a user does: a process of its own, with its own fleet file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.console.fake_agent import FakeAgent

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ran:
    """How a run of `qd` ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def environment(fleet: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a `qd` that knows the hosts of this fleet file only."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {
        **kept, "TZ": "UTC", "PYTHONPATH": f"{ROOT / 'agent'}:{ROOT / 'console'}", "QUARTERDECK_FLEET": str(fleet),
        "PYTHONWARNINGS": "error", **(extra or {}),
    }  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "quarterdeck_console", *arguments]


def qd(fleet: Path, *arguments: str, stdin: bytes = b"", extra: Mapping[str, str] | None = None) -> Ran:
    """Run `qd` without a terminal."""
    ended = subprocess.run(
        command(*arguments), input=stdin, capture_output=True, env=environment(fleet, extra), timeout=60, check=False
    )
    return Ran(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def write_fleet(path: Path, hosts: Mapping[str, str], **more: str) -> Path:
    """A fleet file with these hosts; `more` maps a host to further lines of its table."""
    path.write_text("".join(f'[hosts.{name}]\nurl = "{url}"\n{more.get(name, "")}\n' for name, url in hosts.items()))
    return path


def write_bundle(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A bundle `digits:7` with these files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.toml").write_text('name = "digits"\nversion = "7"\nruntime = "torchscript"\n')
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def fleet_of(tmp_path: Path, *agents: FakeAgent) -> Path:
    """A fleet file of these agents, each named as its folder."""
    return write_fleet(tmp_path / "fleet.toml", {agent.folder.name: agent.url for agent in agents})
