"""What several benchmarks ask of a host: deploy and wait, what a process used, one small request."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.end_to_end.rig import Agent, until

TICK = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of one process so far (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def memory(pid: int, what: str = "VmRSS") -> float:
    """MiB of one process (`VmRSS`, `VmHWM`)."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def ask(host: Agent, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A change that must be taken; its operation."""
    status, answer = host.api(method, path, body)
    assert status == 202, answer
    assert isinstance(answer, dict)
    return answer


def finished(host: Agent, operation: Mapping[str, Any], deadline: float = 90.0) -> None:
    """Wait until an operation has succeeded."""

    def ended() -> dict[str, Any] | None:
        _, found = host.api("GET", f"/v1/operations/{operation['id']}")
        return found if found["state"] not in ("pending", "running") else None

    found = until(ended, f"{operation['summary']} has ended", deadline)
    assert found["state"] == "succeeded", found


def first_answer(address: tuple[str, int], path: str, deadline: float = 30.0) -> float:
    """When `GET path` was first answered with 200, by `time.perf_counter`; it is asked every half millisecond."""
    request = f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode()
    ends = time.perf_counter() + deadline
    while time.perf_counter() < ends:
        try:
            with socket.create_connection(address, timeout=1) as connection:
                connection.sendall(request)
                if connection.recv(64).split(b" ", 2)[1:2] == [b"200"]:
                    return time.perf_counter()
        except OSError:
            pass
        time.sleep(0.0005)
    raise AssertionError(f"no answer from {address}{path} within {deadline:g} s")
