"""Tells which log lines somebody asked for, without ever letting a pattern hold the agent up.

Plain text is looked for as it is. A regular expression can take for ever on one line and Python's `re` cannot be
interrupted, so it runs in a process of its own with limits on CPU and memory, and is ended when it takes too long.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import threading
import time
from typing import Protocol

from quarterdeck_agent.errors import InvalidInput

LINE_CAP = 4 * 1024
"""Bytes of a line that a regular expression sees."""

LINE_DEADLINE = 0.5
BUDGET = 10.0
"""Seconds that one line, and all the lines of one request, may take a regular expression."""

PATTERN_LIMIT = 1024

_CHILD = """
import re, resource, struct, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
read, out = sys.stdin.buffer.read, sys.stdout.buffer
def take():
    head = read(4)
    if len(head) < 4: sys.exit()
    return read(struct.unpack("!I", head)[0])
try:
    search = re.compile(take().decode()).search
except Exception as error:
    out.write(b"e" + str(error).encode()[:200]); out.flush(); sys.exit()
out.write(b"c"); out.flush()
while True:
    found = search(take().decode("utf-8", "replace"))
    out.write(b"1" if found else b"0"); out.flush()
"""


class Pattern(Protocol):
    """Decides line by line. Blocking, for one thread at a time; `close` when done."""

    def matches(self, text: bytes) -> bool: ...

    def close(self) -> None: ...


class Everything:
    """Every line."""

    def matches(self, text: bytes) -> bool:
        return True

    def close(self) -> None: ...


class Plain:
    """Lines that hold this text, in these very letters."""

    def __init__(self, text: str) -> None:
        self._text = text.encode("utf-8", "surrogatepass")

    def matches(self, text: bytes) -> bool:
        return self._text in text

    def close(self) -> None: ...


class Regex:
    """Lines in which a regular expression (Python's syntax) is found; raises `InvalidInput` when it is bad or slow."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > PATTERN_LIMIT:
            raise InvalidInput(f"the pattern is longer than {PATTERN_LIMIT} characters", field="grep")
        self._spent = 0.0
        self._asking = threading.Lock()
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        try:
            # The start of the interpreter is in this wait, hence the longer deadline.
            if self._ask(pattern.encode("utf-8", "replace"), 5.0) != b"c":
                raise InvalidInput(f"not a regular expression: {self._complaint()}", field="grep")
        except BaseException:
            self.close()
            raise
        self._spent = 0.0

    def matches(self, text: bytes) -> bool:
        return self._ask(text[:LINE_CAP], LINE_DEADLINE) == b"1"

    def close(self) -> None:
        # Its end makes a thread that waits for an answer let go of the pipes, so that they can be closed.
        self._child.kill()
        self._child.wait()
        with self._asking:
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()

    def _ask(self, message: bytes, deadline: float) -> bytes:
        began = time.monotonic()
        with self._asking:
            reply = self._exchange(message, deadline)
        self._spent += time.monotonic() - began
        if not reply or self._spent > BUDGET:
            raise InvalidInput(
                "the regular expression takes too long",
                field="grep",
                hint="search for plain text, or a simpler pattern",
            )
        return reply

    def _exchange(self, message: bytes, deadline: float) -> bytes:
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(struct.pack("!I", len(message)) + message)
            readable, _, _ = select.select([self._child.stdout], [], [], deadline)
            return os.read(self._child.stdout.fileno(), 1) if readable else b""
        except (OSError, ValueError):  # it has ended, or `close` was called
            return b""

    def _complaint(self) -> str:
        assert self._child.stdout is not None
        self._child.wait(timeout=5)
        return os.read(self._child.stdout.fileno(), 200).decode("utf-8", "replace")


def pattern(grep: str | None, regex: bool) -> Pattern:
    """The pattern for what a caller asked."""
    if not grep:
        return Everything()
    return Regex(grep) if regex else Plain(grep)
