"""Steady load on one deployment while the story goes on: held-out digits, each answer compared with its label.

Counts what came back, by version; a request that fails in any way is counted as failed and never tried again.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Digits:
    """Held-out images, 64 grey values each, and what they show."""

    images: list[list[int]]
    labels: list[int]

    def request(self, first: int, count: int) -> bytes:
        """An inference request for `count` images from `first` on, in a circle."""
        chosen = [self.images[index % len(self.images)] for index in range(first, first + count)]
        tensor = {"name": "image", "shape": [count, 8, 8], "datatype": "FP32"}
        return json.dumps({"inputs": [tensor | {"data": [grey for image in chosen for grey in image]}]}).encode()


@dataclass(slots=True)
class Counted:
    """What came back so far. `first_seen` is when each version first answered, on `time.monotonic`."""

    sent: int = 0
    failed: int = 0
    right: int = 0
    by_version: Counter[str] = field(default_factory=Counter)
    first_seen: dict[str, float] = field(default_factory=dict)
    last_seen: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, Any]:
        answered = sum(self.by_version.values())
        return {
            "requests": self.sent,
            "failed": self.failed,
            "right": round(self.right / answered, 4) if answered else None,
            "by_version": dict(self.by_version),
        }


class Load:
    """Sends from a few threads between `with` and its end; `counted` may be read at any time."""

    def __init__(self, url: str, digits: Digits, *, threads: int = 3, pause: float = 0.01) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._path = parts.path
        self._digits = digits
        self._pause = pause
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(index,), daemon=True) for index in range(threads)]
        self._began = time.monotonic()
        self.counted = Counted()
        self.seconds = 0.0

    def __enter__(self) -> Load:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
        self.seconds = time.monotonic() - self._began

    def wait_for(self, version: str, since: float, deadline: float = 30.0) -> float | None:
        """Seconds from `since` to the last answer of any other version; `None` when that is not over in time.

        Over means: the version answers, and for a quarter of a second nobody else has.
        """
        until = time.monotonic() + deadline
        while time.monotonic() < until:
            with self._lock:
                seen = self.counted.last_seen.get(version, 0.0)
                others = max((at for name, at in self.counted.last_seen.items() if name != version), default=since)
            if seen > since and seen - others > 0.25:
                return max(0.0, others - since)
            time.sleep(0.02)
        return None

    def _work(self, number: int) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT)
        position = number * 37
        while not self._end.wait(self._pause):
            self._one(connection, position % len(self._digits.labels))
            position += 1
        connection.close()

    def _one(self, connection: http.client.HTTPConnection, index: int) -> None:
        try:
            connection.request("POST", self._path, self._digits.request(index, 1), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise ValueError(f"status {answer.status}: {body[:200].decode(errors='replace')}")
            version, labels = read_answer(body)
        except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
            connection.close()
            with self._lock:
                self.counted.sent += 1
                self.counted.failed += 1
                self.counted.failures.append(f"{type(error).__name__}: {error}"[:300])
            return
        now = time.monotonic()
        with self._lock:
            self.counted.sent += 1
            self.counted.right += labels == [self._digits.labels[index]]
            self.counted.by_version[version] += 1
            self.counted.first_seen.setdefault(version, now)
            self.counted.last_seen[version] = now


def read_answer(body: bytes | str) -> tuple[str, list[int]]:
    """Version and labels of an answer; raises `ValueError` or `KeyError` when it is none."""
    answer = json.loads(body)
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    return str(answer["model_version"]), list(outputs["label"])
