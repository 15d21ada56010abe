"""Asks from inside of a container whether it still has its GPUs: a `systemctl daemon-reload` may have taken them.

Then the devices' nodes are there and may not be opened, and only the container notices; the cure is a new container.
It speaks to the daemon over sockets of its own, so that an `nvidia-smi` that hangs keeps no other call waiting.
"""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

from quarterdeck_agent.drivers.docker_socket import dialer

DEADLINE = 8.0
OUTPUT_LIMIT = 16 << 10
COMMAND = ("nvidia-smi", "-L")
NOT_THERE = (126, 127)
"""What the daemon gives for a program that is not in the image, or cannot be run."""

SIGNS = (
    "Unknown Error",
    "Operation not permitted",
    "Insufficient Permissions",
    "GPU access blocked by the operating system",
    "couldn't communicate with the NVIDIA driver",
    "Unable to determine the device handle",
    "No devices were found",
)


class InsideLook:
    """Runs `nvidia-smi -L` in containers of the daemon at `base_url`, at most one at a time in each."""

    def __init__(self, base_url: str, deadline: float = DEADLINE) -> None:
        self._dial, self._deadline = dialer(base_url), deadline
        self._begun: dict[str, str] = {}

    def gpu_lost(self, container: str) -> str:
        """What the container says when it has lost its GPUs; empty when it has them, or nobody can tell. Blocks."""
        until = time.monotonic() + self._deadline
        try:
            if self._still_runs(container, until):
                return ""  # a second one would hang beside the first
            wish = {"Cmd": list(COMMAND), "AttachStdout": True, "AttachStderr": True, "Tty": True}
            made = json.loads(self._ask("POST", f"/containers/{container}/exec", wish, until))["Id"]
            self._begun[container] = made
            output = self._ask("POST", f"/exec/{made}/start", {"Detach": False, "Tty": True}, until)
            code = self._inspect(made, until).get("ExitCode")
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return ""
        del self._begun[container]
        return verdict(code, output.decode(errors="replace"))

    def _still_runs(self, container: str, until: float) -> bool:
        """Whether the last look into this container has not come back yet."""
        begun = self._begun.get(container)
        if begun is None:
            return False
        try:
            runs = bool(self._inspect(begun, until).get("Running"))
        except FileNotFoundError:
            runs = False
        if not runs:
            del self._begun[container]
        return runs

    def _inspect(self, made: str, until: float) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._ask("GET", f"/exec/{made}/json", None, until))
        return found

    def _ask(self, method: str, path: str, body: object, until: float) -> bytes:
        """One call of the Engine API, its answer read to the end. Raises TimeoutError once `until` is past."""
        sent = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
        with self._dial() as sock:
            sock.settimeout(_left(until))
            sock.sendall(head.encode() + sent)
            response = http.client.HTTPResponse(sock, method=method)
            response.begin()
            answer = b""
            while len(answer) < OUTPUT_LIMIT:
                sock.settimeout(_left(until))
                piece = response.read1(4096)
                if not piece:
                    break
                answer += piece
            response.close()
        if response.status == http.client.NOT_FOUND:
            raise FileNotFoundError(path)
        if response.status >= http.client.BAD_REQUEST:
            raise OSError(f"Docker answered {response.status} to {path}")
        return answer


def verdict(code: int | None, output: str) -> str:
    """The line that shows that the GPUs are lost; empty for any other end of `nvidia-smi -L`."""
    if code in (None, 0, *NOT_THERE):
        return ""
    lines = (line.strip() for line in output.splitlines())
    return next((line[:200] for line in lines if any(sign.lower() in line.lower() for sign in SIGNS)), "")


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer from inside of the container")
    return left
