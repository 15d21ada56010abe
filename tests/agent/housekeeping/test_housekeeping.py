"""The chores of the data folder, over a real store, real blobs and real logs: nothing that is wanted goes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from quarterdeck_agent.blobs import Blobs
from quarterdeck_agent.bundle import canonical, version_id
from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.drivers.base import Found, Life
from quarterdeck_agent.housekeeping import Housekeeper
from quarterdeck_agent.logs import LogStore
from quarterdeck_agent.protocol import ManifestFile, Operation, OperationState, Version
from quarterdeck_agent.store import Store

DAY = 86_400


@dataclass
class House:
    """A data folder with its housekeeper."""

    folder: Path
    store: Store
    blobs: Blobs
    logs: LogStore
    running: list[Found] = field(default_factory=list)
    unstaged: list[str] = field(default_factory=list)

    @property
    def keeper(self) -> Housekeeper:
        return Housekeeper(self.store, self.blobs, self.logs, lambda: tuple(self.running), self.unstaged.append)

    def version(self, number: str, content: bytes) -> Version:
        """Push and stage a version of one file."""
        digest = hashlib.sha256(content).hexdigest()

        async def chunks() -> AsyncIterator[bytes]:
            yield content

        asyncio.run(self.blobs.write(digest, len(content), 0, chunks()))
        files = (ManifestFile("weights", len(content), digest),)
        config = {"name": "toy", "version": number, "runtime": "command"}
        manifest = canonical(files, config)
        now = datetime.now(UTC)
        made = Version(version_id(manifest), f"toy:{number}", "toy", "command", len(content), files, now, "ana", config)
        push = Operation(f"push-{number}", "push", made.label, "ana", now, OperationState.SUCCEEDED)
        self.store.add_version(made, manifest, push)
        self.blobs.stage(made)
        return made

    def age(self) -> None:
        """Let everything look two days old."""
        old = time.time() - 2 * DAY
        for path in (self.folder / "blobs").rglob("*"):
            os.utime(path, (old, old))

    def blob(self, version: Version) -> Path:
        digest = version.files[0].sha256
        return self.folder / "blobs" / digest[:2] / digest


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    clock = SystemClock()
    store = Store.open(tmp_path / "store.sqlite", tmp_path / "backups", clock)
    logs = LogStore(tmp_path / "logs", clock, cap=1000)
    yield House(tmp_path, store, Blobs(tmp_path, reserve=0, share=0), logs)
    logs.close()
    store.close()


def test_only_the_bytes_of_removed_versions_are_freed(house: House) -> None:
    kept, removed = house.version("1", b"kept" * 100), house.version("2", b"removed" * 100)
    house.store.remove_version(removed.id)
    house.age()
    house.keeper.free_versions()
    assert house.blob(kept).exists() and not house.blob(removed).exists()
    assert house.blobs.staged() == {kept.id}
    assert house.unstaged == [removed.id]


def test_a_removed_version_that_still_runs_keeps_its_folder(house: House) -> None:
    removed = house.version("1", b"weights" * 100)
    house.store.remove_version(removed.id)
    house.running.append(Found("toy-1-0", "toy", 1, "body", removed.id, "1:1", Life.RUNNING))
    house.keeper.free_versions()
    assert house.blobs.staged() == {removed.id}


def test_logs_over_their_cap_go_oldest_first_but_not_those_in_use(house: House) -> None:
    for number in (1, 2, 3, 4):
        folder = house.folder / "logs" / "toy" / str(number) / f"toy-{number}-0"
        folder.mkdir(parents=True)
        (folder / "current.log").write_bytes(b"x" * 600)
    house.running.append(Found("toy-1-0", "toy", 1, "body", "v", "1:1", Life.RUNNING))
    house.keeper.prune_logs()
    left = sorted(path.name for path in (house.folder / "logs" / "toy").iterdir())
    assert left == ["1", "4"]


def test_damage_is_told_once_a_week_and_a_chore_that_fails_stops_no_other(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    version = house.version("1", b"weights" * 100)
    blob = house.blob(version)
    blob.chmod(0o644)
    blob.write_bytes(b"rotten!" * 100)
    keeper = house.keeper
    keeper.scrub()
    assert "damaged" not in caplog.text
    keeper.every = 8 * DAY
    keeper.scrub()
    assert "damaged" in caplog.text and version.files[0].sha256[:12] in caplog.text
