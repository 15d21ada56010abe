"""Content-addressed files: resumable uploads, verification, staging and cleaning up.

A blob stands at its place only after every byte was verified; it is verified again when size, mtime or inode changed
since. Layout under the data folder: `blobs/{first two}/{sha256}` with a seal beside it, `blobs/partial/{sha256}`,
`blobs/damaged/{sha256}`, `staged/{version id}/`. Nothing here knows what a version is for.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from quarterdeck_agent import formats
from quarterdeck_agent.bundle import DIGEST, check_digest
from quarterdeck_agent.errors import Conflict, Corrupt, InvalidInput, NoSpace, TooLarge
from quarterdeck_agent.failpoints import failpoint
from quarterdeck_agent.protocol import BlobWanted, ManifestFile, Version
from quarterdeck_agent.staging import Seal, discard, lay_out, sync_folder
from quarterdeck_agent.upload import REHASH_CHUNK, Progressed, Upload, told

EMPTY = hashlib.sha256().hexdigest()
BATCH = 4 << 20
MAX_CHUNKS = 4096
REMEMBERED = 256
IDLE = 60.0
GRACE = 24 * 3600.0
STALE_PARTIAL = 7 * 24 * 3600.0

log = logging.getLogger(__name__)


class Blobs:
    """The blobs of one data folder. Refuses uploads that would leave less than `reserve` bytes or `share` of the disk.

    All methods but `write` block (call them in a thread); all may be called from several threads at once.
    """

    def __init__(self, folder: Path, *, reserve: int = 1 << 30, share: float = 0.05, idle: float = IDLE) -> None:
        self._folder = folder / "blobs"
        self._partial = self._folder / "partial"
        self._damaged = self._folder / "damaged"
        self._staged = folder / "staged"
        self._reserve = reserve
        self._share = share
        self._idle = idle
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._staging: dict[str, threading.Lock] = {}
        self._progressed: OrderedDict[str, Progressed] = OrderedDict()
        for path in (self._folder, self._partial, self._staged):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in [*self._staged.glob(".making-*"), *self._staged.glob(".gone-*")]:
            discard(left)
        if not self._whole(EMPTY, 0):
            self._finish(Upload(self._partial / EMPTY, EMPTY, 0, None))

    # --- what is there -----------------------------------------------------------------------------------------

    def missing(self, files: Sequence[ManifestFile]) -> tuple[BlobWanted, ...]:
        """The blobs of these files that are not here whole, each once, with the offset to go on from."""
        wanted: dict[str, BlobWanted] = {}
        for index, file in enumerate(files):
            check_digest(file.sha256, f"files[{index}].sha256")
            if file.sha256 in wanted:
                continue
            if not self._whole(file.sha256, file.size, f"files[{index}].size"):
                wanted[file.sha256] = BlobWanted(file.sha256, file.size, self._partial_size(file.sha256))
        return tuple(wanted.values())

    def offset(self, sha256: str) -> int:
        """How many bytes of a blob are here; its size when it is whole."""
        path = self._path(check_digest(sha256, "sha256"))
        if self._verified(sha256) is not None:
            return path.lstat().st_size
        return self._partial_size(sha256)

    def _path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    def _partial_size(self, sha256: str) -> int:
        try:
            return (self._partial / sha256).lstat().st_size
        except FileNotFoundError:
            return 0

    def _whole(self, sha256: str, size: int, where: str = "size") -> bool:
        seal = self._verified(sha256)
        if seal is None:
            return False
        if seal.size != size:
            raise InvalidInput(
                f"blob {sha256[:12]} has {seal.size} bytes, not {size}",
                field=where,
                hint="Read the bundle again: a file changed while it was listed.",
            )
        with suppress(OSError):
            # The seal's own mtime tells `collect` when somebody last asked for the blob.
            os.utime(self._seal_path(sha256))
        return True

    # --- verification ------------------------------------------------------------------------------------------

    def _seal_path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / f"{sha256}.seal"

    def _verified(self, sha256: str) -> Seal | None:
        """The seal of a blob that is here and well. Reads it whole when it changed; moves a damaged one away."""
        path = self._path(sha256)
        try:
            now = Seal.of(path.lstat())
        except FileNotFoundError:
            return None
        if self._read_seal(sha256) == now:
            return now
        with told(path):
            if _digest(path) == sha256:
                self._write_seal(sha256, now)
                return now
            self._set_aside(sha256)
        return None

    def _read_seal(self, sha256: str) -> Seal | None:
        try:
            size, mtime_ns, inode = self._seal_path(sha256).read_text().split()
            return Seal(int(size), int(mtime_ns), int(inode))
        except (OSError, ValueError):
            return None

    def _write_seal(self, sha256: str, seal: Seal) -> None:
        path = self._seal_path(sha256)
        made = path.with_suffix(f".seal{threading.get_ident()}")
        made.write_text(f"{seal.size} {seal.mtime_ns} {seal.inode}\n")
        made.rename(path)

    def _set_aside(self, sha256: str) -> None:
        log.error("blob %s is damaged; moved to %s", sha256, self._damaged)
        self._damaged.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            self._path(sha256).rename(self._damaged / sha256)
        self._seal_path(sha256).unlink(missing_ok=True)

    def scrub(self) -> tuple[str, ...]:
        """Read every blob whole; the digests of those that are damaged, which are moved away to be pushed again."""
        damaged = []
        for path in self._all():
            try:
                if _digest(path) != path.name:
                    self._set_aside(path.name)
                    damaged.append(path.name)
            except FileNotFoundError:
                continue
        return tuple(damaged)

    def _all(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("[0-9a-f][0-9a-f]/*") if DIGEST.fullmatch(path.name))

    # --- upload ------------------------------------------------------------------------------------------------

    async def write(self, sha256: str, size: int, offset: int, chunks: AsyncIterator[bytes]) -> int:
        """Append `chunks` at `offset`; the new offset, which is `size` once the blob is whole and verified.

        What came before a cut stays for the next try. Raises `Conflict` when another offset is due or somebody else
        sends the same blob, `InvalidInput` for wrong bytes (they are thrown away), `NoSpace`, `TooLarge`.
        """
        check_digest(sha256, "sha256")
        if not 0 <= offset <= size:
            raise InvalidInput(
                f"offset {offset} is not within 0 and {size}", field="offset", hint="Ask where to go on."
            )
        upload = await self._opened(sha256, size, offset)
        if upload is None:
            return size
        try:
            await self._pump(upload, chunks)
        except BaseException as error:
            await _through(self._leave, upload, isinstance(error, InvalidInput))
            raise
        await _through(self._finish if upload.offset == size else self._leave, upload)
        return upload.offset

    async def _opened(self, sha256: str, size: int, offset: int) -> Upload | None:
        opening = asyncio.get_running_loop().run_in_executor(None, self._begin, sha256, size, offset)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread goes on and would hold the blob for ever.
            opening.add_done_callback(self._abandon)
            raise

    def _abandon(self, opening: asyncio.Future[Upload | None]) -> None:
        upload = None if opening.cancelled() or opening.exception() else opening.result()
        if upload is not None:
            self._leave(upload)

    async def _pump(self, upload: Upload, chunks: AsyncIterator[bytes]) -> None:
        """Collect the next batch while a thread writes and hashes the one before."""
        loop = asyncio.get_running_loop()
        batch: list[bytes] = []
        held, heard = 0, loop.time()
        writing: asyncio.Future[None] | None = None
        try:
            async with asyncio.timeout(self._idle) as deadline:
                async for chunk in chunks:
                    batch.append(bytes(chunk))
                    held += len(chunk)
                    if loop.time() - heard > 1:
                        heard = loop.time()
                        deadline.reschedule(heard + self._idle)
                    if held >= BATCH or len(batch) >= MAX_CHUNKS:
                        if writing is not None:
                            await asyncio.shield(writing)
                        writing = loop.run_in_executor(None, self._append, upload, batch)
                        batch, held = [], 0
        except TimeoutError:
            raise Conflict(
                f"no byte of {upload.sha256[:12]} came for {self._idle:g} seconds",
                hint="Ask where to go on and send the rest.",
            ) from None
        finally:
            # Also after a cut: what arrived is worth keeping.
            if writing is not None:
                await asyncio.shield(writing)
            if batch:
                await _through(self._append, upload, batch)

    def _append(self, upload: Upload, batch: list[bytes]) -> None:
        self._check_space(sum(map(len, batch)))
        upload.append(batch)
        failpoint("upload.written")

    def _begin(self, sha256: str, size: int, offset: int) -> Upload | None:
        """An upload that may append at `offset`, or `None` when the blob is here whole."""
        with self._lock:
            if sha256 in self._busy:
                raise Conflict(
                    f"somebody else is sending {sha256[:12]} at this moment",
                    hint="Wait a moment, ask where to go on and send what is missing then.",
                )
            self._busy.add(sha256)
        try:
            if self._whole(sha256, size):
                self._busy.discard(sha256)
                return None
            if size > self._disk_size():
                raise TooLarge(f"a blob of {size} bytes does not fit on the disk", field="size")
            self._check_space(size - offset)
            upload = Upload(self._partial / sha256, sha256, size, self._progressed.get(sha256))
            if upload.offset != offset:
                due = upload.offset
                upload.close()
                raise Conflict(
                    f"{due} bytes of {sha256[:12]} are here; bytes from {offset} on do not fit",
                    field="offset",
                    hint=f"Send the bytes from {due} on.",
                )
            return upload
        except BaseException:
            self._busy.discard(sha256)
            raise

    def _leave(self, upload: Upload, forget: bool = False) -> None:
        """Keep what came for the next try, or throw it away."""
        try:
            progressed = upload.close()
            self._progressed.pop(upload.sha256, None)
            if forget:
                upload.path.unlink(missing_ok=True)
            else:
                self._progressed[upload.sha256] = progressed
            while len(self._progressed) > REMEMBERED:
                self._progressed.popitem(last=False)
        finally:
            self._busy.discard(upload.sha256)

    def _finish(self, upload: Upload) -> None:
        """Verify and move to its place. The seal is written first: without its blob it means nothing."""
        wrong = True
        try:
            status = upload.finish()
            failpoint("upload.verified")
            path = self._path(upload.sha256)
            with told(path):
                path.parent.mkdir(mode=0o700, exist_ok=True)
                self._write_seal(upload.sha256, Seal.of(status))
                failpoint("upload.sealed")
                upload.path.rename(path)
                failpoint("upload.named")
                sync_folder(path.parent)
            wrong = False
        finally:
            self._leave(upload, wrong and not upload.path.exists())
        self._progressed.pop(upload.sha256, None)

    def _disk_size(self) -> int:
        disk = os.statvfs(self._folder)
        return disk.f_blocks * disk.f_frsize

    def _check_space(self, needed: int) -> None:
        disk = os.statvfs(self._folder)
        free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        floor = max(self._reserve, int(total * self._share))
        if free - needed < floor:
            raise NoSpace(
                f"{needed} bytes more would leave less than {floor} bytes free under {self._folder} ({free} are free)",
                hint="Remove versions nobody uses (`qd versions`) or free disk space, then push again.",
            )

    # --- reading -----------------------------------------------------------------------------------------------

    def read(self, sha256: str, at_most: int) -> bytes:
        """The bytes of a small blob. Raises `TooLarge`, `Corrupt`."""
        path, seal = self._sound(ManifestFile(sha256[:12], 0, check_digest(sha256, "sha256")))
        if seal.size > at_most:
            raise TooLarge(f"blob {sha256[:12]} has {seal.size} bytes; at most {at_most} are read")
        with told(path):
            return path.read_bytes()

    def formats(self, files: Sequence[ManifestFile], *, allow_pickle: bool = False) -> tuple[str, ...]:
        """The model formats among these files, sorted. Raises `InvalidInput` for a pickle that was not allowed."""
        found: set[str] = set()
        for index, file in enumerate(files):
            path, _ = self._sound(file)
            one = _format(path, file, f"files[{index}]", allow_pickle)
            if one != "plain":
                found.add(one)
        return tuple(sorted(found))

    def _sound(self, file: ManifestFile) -> tuple[Path, Seal]:
        seal = self._verified(file.sha256)
        if seal is None:
            raise Corrupt(
                f"the bytes of {file.path!r} (blob {file.sha256[:12]}) are damaged or gone",
                hint="Push the version again: only what is missing travels. `qd doctor` looks at the disk.",
            )
        return self._path(file.sha256), seal

    # --- staging -----------------------------------------------------------------------------------------------

    def stage(self, version: Version) -> Path:
        """A read-only folder with the version's files. Raises `Corrupt`, naming the file, `NoSpace`."""
        folder = self._staged / check_digest(version.id, "version")
        with self._lock:
            lock = self._staging.setdefault(version.id, threading.Lock())
        with lock, told(folder):
            lay_out(folder, version.files, self._sound)
        return folder

    def staged(self) -> set[str]:
        """The ids of the versions that have a folder."""
        return {path.name for path in self._staged.iterdir() if not path.name.startswith(".")}

    def unstage(self, version: str) -> None:
        """Remove the folder of a version; its blobs stay. Gone already is fine."""
        with told(self._staged):
            discard(self._staged / check_digest(version, "version"))

    # --- cleaning up -------------------------------------------------------------------------------------------

    def collect(self, keep: Collection[str], *, grace: float = GRACE) -> int:
        """Free the blobs that are not in `keep` and that no push asked for in `grace` seconds; the bytes freed.

        Partial files that nobody touched for a week go too.
        """
        now, freed = time.time(), 0
        for path in self._all():
            if path.name not in keep and path.name != EMPTY:
                freed += self._drop(path, now - grace)
        for path in self._partial.iterdir():
            with self._holding(path.name) as free, suppress(FileNotFoundError):
                status = path.lstat()
                if free and status.st_mtime < now - STALE_PARTIAL:
                    path.unlink()
                    freed += status.st_size
        return freed

    def free(self, digests: Iterable[str]) -> int:
        """Free these blobs now, but those that are just being uploaded; the bytes freed."""
        with told(self._folder):
            return sum(self._drop(self._path(sha256), float("inf")) for sha256 in digests if sha256 != EMPTY)

    def _drop(self, path: Path, before: float) -> int:
        seal = self._seal_path(path.name)
        with self._holding(path.name) as free, suppress(FileNotFoundError):
            status = path.lstat()
            asked = seal.lstat().st_mtime if seal.exists() else status.st_mtime
            if not free or asked > before:
                return 0
            path.unlink()
            seal.unlink(missing_ok=True)
            return status.st_size
        return 0

    @contextmanager
    def _holding(self, sha256: str) -> Iterator[bool]:
        """Keep uploads of a blob away for a moment; `False` when one is going on."""
        with self._lock:
            free = sha256 not in self._busy
            self._busy.add(sha256)
        try:
            yield free
        finally:
            if free:
                self._busy.discard(sha256)


async def _through(function: Callable[..., None], *args: object) -> None:
    """Run in a thread to its end, also when the caller is cancelled meanwhile."""
    await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, function, *args))


def _digest(path: Path) -> str:
    """The SHA-256 of a file, read with bounded memory."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(REHASH_CHUNK))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _format(path: Path, file: ManifestFile, where: str, allow_pickle: bool) -> str:
    try:
        with path.open("rb") as opened:
            found = formats.detect(opened, file.size, file.path)
    except formats.Damaged as damaged:
        if allow_pickle:
            return "plain"
        raise InvalidInput(f"{file.path!r}: {damaged}", field=where, hint="Write the file again and push.") from None
    if found.format == "pickle" and not allow_pickle:
        raise InvalidInput(
            f"{file.path!r} is {found.detail}: loading it runs code of whoever made it",
            field=where,
            hint="Save the weights as safetensors or TorchScript, or push with --allow-pickle if you trust its author.",
        )
    return found.format
