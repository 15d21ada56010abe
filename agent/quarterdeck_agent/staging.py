"""Lays a version's files out as a read-only folder of hard links to verified blobs, whole or not at all.

Never writes outside the folder it was given, whatever a path says, and never changes a blob.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quarterdeck_agent.bundle import Golden, ModelConfig, check_files
from quarterdeck_agent.errors import Corrupt, InvalidInput
from quarterdeck_agent.protocol import ManifestFile

MAX_GOLDEN_FILE = 16 << 20
_NO_LINK = (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class Seal:
    """What a blob's file looked like when its bytes were last verified."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Seal:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


def lay_out(folder: Path, files: Sequence[ManifestFile], blob: Callable[[ManifestFile], tuple[Path, Seal]]) -> None:
    """Make `folder` hold exactly `files`. `blob` gives a file's verified blob, or raises.

    A folder that is whole already is left alone, else it is made anew beside its place and moved there.
    """
    files = check_files(files)
    sealed = [(file, *blob(file)) for file in files]
    if folder.is_dir() and all(_same(folder / file.path, seal) for file, _, seal in sealed):
        return
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = folder.parent / f".making-{folder.name}-{secrets.token_hex(4)}"
    try:
        for file, source, seal in sealed:
            target = made / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(source, target, seal)
        _seal_folders(made)
        discard(folder)
        made.rename(folder)
        sync_folder(folder.parent)
    finally:
        discard(made)


def _same(path: Path, seal: Seal) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    # Not the inode: where links were not possible the file is a copy.
    return (status.st_size, status.st_mtime_ns) == (seal.size, seal.mtime_ns)


def _link(source: Path, target: Path, seal: Seal) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(source, target, follow_symlinks=False)
        target.chmod(0o444)
        os.utime(target, ns=(seal.mtime_ns, seal.mtime_ns))


def _seal_folders(top: Path) -> None:
    for folder, _, _ in os.walk(top, topdown=False):
        Path(folder).chmod(0o555)
        sync_folder(Path(folder))


def discard(folder: Path) -> None:
    """Remove a staged folder; moved aside first, so that nobody sees half of one. Gone already is fine."""
    aside = folder.parent / f".gone-{secrets.token_hex(8)}"
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    for inner, _, _ in os.walk(aside):
        Path(inner).chmod(0o700)
    shutil.rmtree(aside)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- golden requests ---------------------------------------------------------------------------------------------


def with_golden(model: ModelConfig, read: Callable[[str], bytes]) -> ModelConfig:
    """The model with the JSON of `body_file` and `expect_file` filled in. `read` gives a file of the bundle."""
    filled = tuple(_filled(golden, f"golden[{index}]", read) for index, golden in enumerate(model.golden))
    return dataclasses.replace(model, golden=filled)


def _filled(golden: Golden, where: str, read: Callable[[str], bytes]) -> Golden:
    values: dict[str, Any] = {}
    for key, path in (("body", golden.body_file), ("expect", golden.expect_file)):
        if path is None:
            continue
        try:
            values[key] = json.loads(read(path))
        except (ValueError, RecursionError) as error:
            raise InvalidInput(
                f"{path!r}, named by {where}.{key}_file, is not JSON: {error}"[:500],
                field=f"{where}.{key}_file",
                hint="Golden bodies and answers are JSON in UTF-8.",
            ) from None
    return dataclasses.replace(golden, **values)


def staged_reader(folder: Path) -> Callable[[str], bytes]:
    """Reads files of a staged version for `with_golden`."""

    def read(path: str) -> bytes:
        try:
            with (folder / path).open("rb") as file:
                data = file.read(MAX_GOLDEN_FILE + 1)
        except OSError as error:
            raise Corrupt(f"the staged file {path!r} cannot be read: {error.strerror}", hint="Deploy again.") from error
        if len(data) > MAX_GOLDEN_FILE:
            raise InvalidInput(f"{path!r} is larger than {MAX_GOLDEN_FILE} bytes", hint="Use a smaller golden request.")
        return data

    return read
