"""A bundle as its author has it on disk: which files it is made of, and their digests.

Reads and hashes; the agent judges what `model.toml` says. Nothing outside the folder is read: a link that leads out
of it is an error, as is anything that is neither file nor folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quarterdeck_agent.protocol import ManifestFile, PushRequest
from quarterdeck_console.errors import Usage

CONFIG_NAME = "model.toml"
IGNORED = frozenset({".git", ".hg", "__pycache__", ".DS_Store", ".ipynb_checkpoints"})
CHUNK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the bundle as it was when it was listed; a change of any of these means that it was written since."""

    path: Path
    name: str
    size: int
    modified_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle with its digests: the request that describes it, and where each content lies."""

    request: PushRequest
    sources: dict[str, Source]

    @property
    def label(self) -> str:
        """`name:version` as `model.toml` has it; the agent's own label is the one that counts."""
        return f"{self.request.config.get('name', '?')}:{self.request.config.get('version', '?')}"

    @property
    def size(self) -> int:
        """All bytes, each content counted once."""
        return sum({file.sha256: file.size for file in self.request.files}.values())


def read_config(folder: Path) -> dict[str, Any]:
    """`model.toml`, parsed. Raises `Usage` saying what to do."""
    path = folder / CONFIG_NAME
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        what = f"there is no {CONFIG_NAME} in {folder}" if folder.is_dir() else f"there is no folder {folder}"
        raise Usage(what, hint=f"a bundle is a folder with {CONFIG_NAME} and the model's files") from error
    except NotADirectoryError as error:
        raise Usage(f"{folder} is not a folder", hint=f"a bundle is a folder with {CONFIG_NAME} in it") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Usage(f"{path} is not valid TOML: {error}", field=CONFIG_NAME) from error
    except RecursionError as error:
        raise Usage(f"{path} is nested too deeply to be read", field=CONFIG_NAME) from error
    except OSError as error:
        raise Usage(f"cannot read {path}: {error.strerror or error}") from error


def list_files(folder: Path) -> tuple[Source, ...]:
    """Every file of the bundle, by name. Raises `Usage` for what cannot be part of one."""
    root = folder.resolve()
    return tuple(sorted(_walk(folder, root), key=lambda source: source.name))


def _walk(folder: Path, root: Path) -> Iterator[Source]:
    def fail(error: OSError) -> None:
        raise Usage(f"cannot read {error.filename}: {error.strerror}") from error

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(set(folders) - IGNORED)
        for name in folders:
            if (Path(place) / name).is_symlink():
                raise Usage(f"{Path(place) / name} is a link to a folder", hint="copy the folder into the bundle")
        for name in set(files) - IGNORED:
            if not name.endswith(".pyc"):
                yield _source(Path(place) / name, folder, root)


def _source(path: Path, folder: Path, root: Path) -> Source:
    name = path.relative_to(folder).as_posix()
    try:
        name.encode("utf-8")
        seen = path.stat()
    except UnicodeEncodeError as error:
        raise Usage(f"the name of {name!r} is not UTF-8", hint="rename the file") from error
    except OSError as error:
        raise Usage(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(seen.st_mode):
        raise Usage(f"{path} is neither a file nor a folder", hint="take it out of the bundle")
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise Usage(f"{path} is a link that leads out of the bundle", hint="copy the file into the bundle")
    return Source(path, name, seen.st_size, seen.st_mtime_ns, seen.st_ino)


def digest(source: Source, told: Callable[[int], None]) -> ManifestFile:
    """A file's manifest entry; `told` hears of every chunk's length. Raises `Usage` when it changes meanwhile."""
    sha = hashlib.sha256()
    try:
        with source.path.open("rb", buffering=0) as file:
            buffer = bytearray(CHUNK)
            view = memoryview(buffer)
            while count := file.readinto(buffer):
                sha.update(view[:count])
                told(count)
    except OSError as error:
        raise Usage(f"cannot read {source.path}: {error.strerror}") from error
    check_unchanged(source)
    return ManifestFile(source.name, source.size, sha.hexdigest())


def check_unchanged(source: Source) -> None:
    """Raise `Usage` when the file is not what it was when it was listed."""
    try:
        seen = source.path.stat()
    except OSError as error:
        raise Usage(f"{source.path} went away during the push") from error
    if (seen.st_size, seen.st_mtime_ns, seen.st_ino) != (source.size, source.modified_ns, source.inode):
        raise Usage(f"{source.path} was written during the push", hint="push again when nothing writes to the bundle")


def read(folder: Path, allow_pickle: bool, told: Callable[[int], None]) -> Bundle:
    """List and hash a bundle, several files at once. Blocking: call it in a thread."""
    config = read_config(folder)
    sources = list_files(folder)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="hash") as pool:
        files = tuple(pool.map(lambda source: digest(source, told), sources))
    request = PushRequest(files=files, config=config, allow_pickle=allow_pickle)
    return Bundle(request, {file.sha256: source for file, source in zip(files, sources, strict=True)})
