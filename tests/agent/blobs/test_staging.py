"""Staged versions: whole, read-only, made of verified bytes, and never anything outside their folder."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from quarterdeck_agent.blobs import Blobs
from quarterdeck_agent.errors import Corrupt, InvalidInput
from quarterdeck_agent.protocol import ManifestFile

from .making import digest, listed, pieces, send, snapshot, version_of

FILES = {"model.toml": b"name", "weights/a.bin": b"A" * 5000, "weights/deep/b.bin": b"B" * 5000, "empty": b""}


@pytest.fixture
def pushed(blobs: Blobs) -> Blobs:
    for data in FILES.values():
        send(blobs, data)
    return blobs


def blob_path(tmp_path: Path, data: bytes) -> Path:
    return tmp_path / "data/blobs" / digest(data)[:2] / digest(data)


def test_a_staged_version_holds_its_files_read_only_and_takes_no_space(pushed: Blobs, tmp_path: Path) -> None:
    folder = pushed.stage(version_of(FILES))
    assert {path: data for path, data in snapshot(folder).items() if data is not None} == FILES
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o555 if path.is_dir() else 0o444)
    staged, blob = folder / "weights/a.bin", blob_path(tmp_path, FILES["weights/a.bin"])
    assert staged.stat().st_ino == blob.stat().st_ino


def test_staging_again_leaves_the_folder_alone(pushed: Blobs) -> None:
    first = pushed.stage(version_of(FILES)).stat()
    assert pushed.stage(version_of(FILES)).stat().st_ino == first.st_ino


def test_a_changed_blob_is_refused_by_the_name_of_its_file(pushed: Blobs, tmp_path: Path) -> None:
    pushed.stage(version_of(FILES))
    path = blob_path(tmp_path, FILES["weights/a.bin"])
    path.chmod(0o644)
    path.write_bytes(b"C" * 5000)
    with pytest.raises(Corrupt, match=r"weights/a\.bin"):
        pushed.stage(version_of(FILES))


def test_a_damaged_blob_can_be_pushed_again_and_is_staged_anew(pushed: Blobs, tmp_path: Path) -> None:
    pushed.stage(version_of(FILES))
    path = blob_path(tmp_path, FILES["weights/a.bin"])
    path.chmod(0o644)
    path.write_bytes(b"C" * 5000)
    assert [wanted.sha256 for wanted in pushed.missing(version_of(FILES).files)] == [digest(FILES["weights/a.bin"])]
    send(pushed, FILES["weights/a.bin"])
    assert (pushed.stage(version_of(FILES)) / "weights/a.bin").read_bytes() == FILES["weights/a.bin"]


def test_a_touched_but_unchanged_blob_is_verified_again_and_accepted(pushed: Blobs, tmp_path: Path) -> None:
    os.utime(blob_path(tmp_path, FILES["weights/a.bin"]), ns=(1, 1))
    assert (pushed.stage(version_of(FILES)) / "weights/a.bin").read_bytes() == FILES["weights/a.bin"]


def test_a_missing_blob_is_refused_and_nothing_is_staged(blobs: Blobs, tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match=r"model\.toml"):
        blobs.stage(version_of(FILES))
    assert list((tmp_path / "data/staged").iterdir()) == []


def test_files_are_copied_where_they_cannot_be_linked(
    pushed: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    folder = pushed.stage(version_of(FILES))
    staged = folder / "weights/a.bin"
    assert staged.read_bytes() == FILES["weights/a.bin"] and staged.stat().st_nlink == 1
    assert pushed.stage(version_of(FILES)).stat().st_ino == folder.stat().st_ino


def test_what_an_agent_left_half_made_is_cleared_at_the_next_start(pushed: Blobs, tmp_path: Path) -> None:
    half = tmp_path / "data/staged/.making-x/inner"
    half.mkdir(parents=True)
    half.parent.chmod(0o555)
    Blobs(tmp_path / "data", reserve=0, share=0)
    assert not half.parent.exists()


def test_unstaging_keeps_the_blobs(pushed: Blobs) -> None:
    folder = pushed.stage(version_of(FILES))
    pushed.unstage("e" * 64)
    pushed.unstage("e" * 64)
    assert not folder.exists()
    assert pushed.missing(version_of(FILES).files) == ()


@pytest.mark.parametrize("path", ["../out", "/tmp/out", "a/../../out", "a\0b", ".", "", "a//b"])
def test_a_hostile_path_changes_nothing(pushed: Blobs, tmp_path: Path, path: str) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(InvalidInput):
        pushed.stage(version_of({path: b"name"}))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("version", ["..", "../..", "/", "E" * 64])
def test_what_is_not_a_version_id_is_not_unstaged(pushed: Blobs, tmp_path: Path, version: str) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(InvalidInput):
        pushed.unstage(version)
    assert snapshot(tmp_path) == before


def test_scrubbing_finds_bytes_that_changed_without_a_trace(pushed: Blobs, tmp_path: Path) -> None:
    path = blob_path(tmp_path, FILES["weights/a.bin"])
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"C" * 5000)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert pushed.scrub() == (digest(FILES["weights/a.bin"]),)
    assert pushed.scrub() == ()
    assert len(pushed.missing(version_of(FILES).files)) == 1


def test_collecting_frees_only_what_nobody_keeps_or_asked_for_lately(pushed: Blobs) -> None:
    keep = {digest(data) for path, data in FILES.items() if path != "weights/b.bin"} - {digest(b"A" * 5000)}
    assert pushed.collect(keep) == 0
    assert pushed.collect(keep, grace=-1) == 5000
    assert [wanted.sha256 for wanted in pushed.missing(version_of(FILES).files)] == [digest(b"A" * 5000)]


def test_collecting_leaves_a_running_upload_alone(blobs: Blobs, tmp_path: Path) -> None:
    async def sent() -> AsyncIterator[bytes]:
        yield b"123"
        os.utime(tmp_path / "data/blobs/partial" / digest(b"12345"), ns=(1, 1))
        assert blobs.collect(set(), grace=-1) == 0
        yield b"45"

    assert asyncio.run(blobs.write(digest(b"12345"), 5, 0, sent())) == 5


def test_collecting_frees_what_an_upload_left_long_ago(blobs: Blobs, tmp_path: Path) -> None:
    asyncio.run(blobs.write(digest(b"12345"), 5, 0, pieces(b"123")))
    assert blobs.collect(set()) == 0
    os.utime(tmp_path / "data/blobs/partial" / digest(b"12345"), ns=(1, 1))
    assert blobs.collect(set()) == 3
    assert send(blobs, b"12345") == 5


def test_reading_is_bounded_and_wants_a_verified_blob(pushed: Blobs) -> None:
    assert pushed.read(digest(b"name"), 4) == b"name"
    with pytest.raises(Exception, match="at most 3"):
        pushed.read(digest(b"name"), 3)
    with pytest.raises(Corrupt):
        pushed.read(digest(b"never sent"), 100)


def test_a_size_that_contradicts_the_blob_is_named(pushed: Blobs) -> None:
    with pytest.raises(InvalidInput) as caught:
        pushed.missing([listed("a", b"name"), ManifestFile("b", 9, digest(b"A" * 5000))])
    assert caught.value.field == "files[1].size"
