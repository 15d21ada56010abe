"""A real runtime process on loopback for tests: started, waited for, asked, and always ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
DEADLINE = 60.0


@dataclass(frozen=True, slots=True)
class Running:
    """A runtime process, where it listens and where its output goes."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def ask(self, path: str, body: Any = None, *, raw: bytes | None = None) -> tuple[int, Any]:
        """Status and JSON of one request: POST with a body, else GET."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def wait_ready(self, path: str = "/v2/health/ready") -> None:
        """Wait until it is ready; fails with its output when it ends or never is."""
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.output()}"
            try:
                if self.ask(path)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"never ready: {self.output()}")

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def status(self, key: str) -> int:
        """A figure of /proc/PID/status, such as VmRSS in KiB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))

    def children(self) -> list[int]:
        """Processes whose parent is the runtime."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            found += [int(pid) for pid in (task / "children").read_text().split()]
        return found


@contextmanager
def started(folder: Path, *command: str, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """A process with `{port}` in its command filled in, its output in a file beside the bundle."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder.parent / f"{folder.name}-{port}.log"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "agent"), **(env or {})}
    words = [word.replace("{port}", str(port)) for word in command]
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, env=environment, cwd=folder)
    try:
        yield Running(process, port, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(10)


@contextmanager
def serving(
    folder: Path, name: str = "m", *, wait: bool = True, env: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """`python -m quarterdeck_runtime` on a bundle."""
    command = (sys.executable, "-m", "quarterdeck_runtime", "--bundle", str(folder), "--port", "{port}", "--name", name)
    with started(folder, *command, env={"QUARTERDECK_CPUS": "1", **(env or {})}) as running:
        if wait:
            running.wait_ready()
        yield running
