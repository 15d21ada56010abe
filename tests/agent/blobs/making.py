"""Builders for the tests of blobs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from quarterdeck_agent.blobs import Blobs
from quarterdeck_agent.protocol import ManifestFile, Version


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def pieces(data: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def cut_after(data: bytes) -> AsyncIterator[bytes]:
    async for piece in pieces(data):
        yield piece
    raise ConnectionError("cut")


def send(blobs: Blobs, data: bytes, offset: int = 0) -> int:
    return asyncio.run(blobs.write(digest(data), len(data), offset, pieces(data[offset:])))


def listed(path: str, data: bytes) -> ManifestFile:
    return ManifestFile(path, len(data), digest(data))


def version_of(files: dict[str, bytes]) -> Version:
    entries = tuple(listed(path, data) for path, data in files.items())
    return Version("e" * 64, "x:1", "x", "python", 0, entries, datetime(2026, 1, 1, tzinfo=UTC), "me")


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every name below a folder and the bytes of each file."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
    }
