"""One upload of one blob: bytes appended to a partial file and hashed as they come, in one thread at a time.

An upload never makes a blob: it hands over a whole, synced, verified file or nothing. What was written survives a
cut, a kill and a full disk, and the next upload goes on behind it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quarterdeck_agent.errors import AgentError, InvalidInput, NoSpace

if TYPE_CHECKING:
    from hashlib import _Hash

REHASH_CHUNK = 1 << 20
SYNC_EVERY = 256 << 20
MAX_VECTORS = 512


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a partial file has been hashed, so that the next request need not read it again."""

    offset: int
    mtime_ns: int
    inode: int
    digest: _Hash


class Upload:
    """An open partial file. Every method may run in any thread; they exclude each other."""

    def __init__(self, path: Path, sha256: str, size: int, known: Progressed | None) -> None:
        self.path = path
        self.sha256 = sha256
        self.size = size
        self._lock = threading.Lock()
        self._unsynced = 0
        self._syncer = ThreadPoolExecutor(1, "sync")
        self._syncing: Future[None] | None = None
        self._hasher = ThreadPoolExecutor(1, "hash")
        self._hashing: Future[None] | None = None
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with told(path):
            self._file = _open(path)
        try:
            self.offset, self._digest = self._resume(known)
        except BaseException:
            os.close(self._file)
            raise

    def _resume(self, known: Progressed | None) -> tuple[int, _Hash]:
        status = os.fstat(self._file)
        if status.st_size > self.size:
            os.ftruncate(self._file, 0)
            return 0, hashlib.sha256()
        if known is not None and (known.offset, known.mtime_ns, known.inode) == (
            status.st_size,
            status.st_mtime_ns,
            status.st_ino,
        ):
            os.lseek(self._file, 0, os.SEEK_END)
            return known.offset, known.digest.copy()
        digest = hashlib.sha256()
        while chunk := os.read(self._file, REHASH_CHUNK):
            digest.update(chunk)
        return status.st_size, digest

    def append(self, chunks: Sequence[bytes]) -> None:
        """Write and hash. Raises `InvalidInput` for bytes beyond the size, `NoSpace`; what fitted stays."""
        with self._lock, told(self.path):
            if self.offset + sum(map(len, chunks)) > self.size:
                raise InvalidInput(
                    f"more than the {self.size} bytes announced for {self.sha256[:12]} arrived",
                    field="size",
                    hint="Read the bundle again: the file changed while it was sent.",
                )
            for start in range(0, len(chunks), MAX_VECTORS):
                self._write(list(chunks[start : start + MAX_VECTORS]))

    def _write(self, chunks: list[bytes]) -> None:
        done: list[bytes | memoryview] = []
        try:
            while chunks:
                written = os.writev(self._file, chunks)
                self._unsynced += written
                self.offset += written
                while chunks and written >= len(chunks[0]):
                    written -= len(chunks[0])
                    done.append(chunks.pop(0))
                if written:
                    done.append(memoryview(chunks[0])[:written])
                    chunks[0] = chunks[0][written:]
        finally:
            self._hash(done)  # exactly what was written, also when the disk took no more
        # A steady trickle to the disk, beside the hashing: one sync at the end of a large file would stall everybody.
        if self._unsynced >= SYNC_EVERY:
            self._settle()
            self._syncing = self._syncer.submit(os.fdatasync, self._file)
            self._unsynced = 0

    def _hash(self, parts: list[bytes | memoryview]) -> None:
        """Hash these bytes in their turn while the next ones are written; one batch waits at most."""
        self._hashed()
        self._hashing = self._hasher.submit(self._update, parts)

    def _update(self, parts: list[bytes | memoryview]) -> None:
        for part in parts:
            self._digest.update(part)

    def _hashed(self) -> None:
        """Wait until the digest is that of all bytes written."""
        if self._hashing is not None:
            hashing, self._hashing = self._hashing, None
            hashing.result()

    def _settle(self) -> None:
        """Wait for the sync that goes on; it tells its errors here."""
        if self._syncing is not None:
            syncing, self._syncing = self._syncing, None
            syncing.result()

    def close(self) -> Progressed:
        """Make durable what came, and tell how far it is hashed."""
        with self._lock:
            try:
                with told(self.path):
                    self._settle()
                    if self._unsynced:
                        os.fdatasync(self._file)
                self._hashed()
                status = os.fstat(self._file)
                return Progressed(self.offset, status.st_mtime_ns, status.st_ino, self._digest)
            finally:
                self._syncer.shutdown()
                self._hasher.shutdown()
                os.close(self._file)

    def finish(self) -> os.stat_result:
        """Verify the whole file, make it read-only and durable. The file stays open until `close`.

        Raises `InvalidInput` when the bytes are not those of the digest; the partial file is gone then.
        """
        with self._lock, told(self.path):
            self._hashed()
            found = self._digest.hexdigest()
            if found != self.sha256:
                self.path.unlink()
                raise InvalidInput(
                    f"the bytes sent as {self.sha256} have the digest {found}; they were thrown away",
                    field="sha256",
                    hint="Read the bundle again and send the file from the start.",
                )
            self._settle()
            os.fchmod(self._file, 0o444)
            os.fsync(self._file)
            self._unsynced = 0
            return os.fstat(self._file)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except PermissionError:
        # Verified and read-only already, but the agent ended before it could be moved.
        path.chmod(0o600)
        return os.open(path, flags)


class told:  # noqa: N801 - reads as a word: `with told(path):`
    """Errors of the file system in the agent's words."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"the disk under {self._path.parent} is full",
                hint="Remove versions nobody uses (`qd versions`) or free disk space, then send the rest.",
            ) from error
        raise AgentError(f"{self._path}: {error.strerror}", hint="See the agent's log and `qd doctor`.") from error
