"""Uploads: resumable, verified, safe against each other, and never a blob before every byte was verified."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quarterdeck_agent.blobs import Blobs
from quarterdeck_agent.errors import Conflict, InvalidInput, NoSpace, TooLarge
from quarterdeck_agent.protocol import BlobWanted

from .making import cut_after, digest, listed, pieces, send, snapshot

DATA = bytes(range(256)) * 2048


def test_only_what_is_missing_is_asked_for(blobs: Blobs) -> None:
    send(blobs, b"here")
    files = [listed("a", b"here"), listed("b", b"gone"), listed("c", b"gone"), listed("d", b"")]
    assert blobs.missing(files) == (BlobWanted(digest(b"gone"), 4, 0),)


def test_a_cut_upload_goes_on_where_it_stopped(blobs: Blobs) -> None:
    with pytest.raises(ConnectionError):
        asyncio.run(blobs.write(digest(DATA), len(DATA), 0, cut_after(DATA[:300_000])))
    assert blobs.missing([listed("a", DATA)]) == (BlobWanted(digest(DATA), len(DATA), 300_000),)
    assert send(blobs, DATA, 300_000) == len(DATA)
    assert blobs.read(digest(DATA), len(DATA)) == DATA


def test_another_offset_than_the_due_one_is_a_conflict_that_names_the_due_one(blobs: Blobs) -> None:
    asyncio.run(blobs.write(digest(DATA), len(DATA), 0, pieces(DATA[:1000])))
    for offset in (0, 999, 1001):
        with pytest.raises(Conflict) as caught:
            send(blobs, DATA, offset)
        assert "from 1000 on" in str(caught.value.hint)
    assert blobs.offset(digest(DATA)) == 1000


def test_wrong_bytes_are_refused_and_thrown_away(blobs: Blobs) -> None:
    wrong = b"x" * len(DATA)
    with pytest.raises(InvalidInput) as caught:
        asyncio.run(blobs.write(digest(DATA), len(DATA), 0, pieces(wrong)))
    assert caught.value.field == "sha256"
    assert blobs.offset(digest(DATA)) == 0
    assert send(blobs, DATA) == len(DATA)


def test_more_bytes_than_announced_are_refused_and_thrown_away(blobs: Blobs) -> None:
    with pytest.raises(InvalidInput):
        asyncio.run(blobs.write(digest(DATA), 10, 0, pieces(DATA[:11])))
    assert blobs.offset(digest(DATA)) == 0


def test_a_partial_file_is_never_offered_as_a_blob(blobs: Blobs) -> None:
    asyncio.run(blobs.write(digest(DATA), len(DATA), 0, pieces(DATA[:-1])))
    assert blobs.missing([listed("a", DATA)])
    assert send(blobs, DATA, len(DATA) - 1) == len(DATA)
    assert blobs.missing([listed("a", DATA)]) == ()


@pytest.mark.parametrize("sha256", ["", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 64 + "\n", "a/" * 32])
def test_what_is_not_a_digest_changes_nothing(blobs: Blobs, tmp_path: Path, sha256: str) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(InvalidInput):
        asyncio.run(blobs.write(sha256, 1, 0, pieces(b"x")))
    with pytest.raises(InvalidInput):
        blobs.offset(sha256)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("size", "offset"), [(5, 6), (5, -1), (-1, 0)])
def test_an_impossible_offset_is_refused(blobs: Blobs, size: int, offset: int) -> None:
    with pytest.raises(InvalidInput):
        asyncio.run(blobs.write("a" * 64, size, offset, pieces(b"")))


def test_an_impossible_size_is_refused_before_anything_is_written(blobs: Blobs) -> None:
    with pytest.raises(TooLarge):
        asyncio.run(blobs.write("a" * 64, 1 << 60, 0, pieces(b"x")))


def test_a_symlink_in_the_place_of_a_partial_file_is_not_followed(blobs: Blobs, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    (tmp_path / "data/blobs/partial" / digest(DATA)).symlink_to(outside)
    with pytest.raises(Exception, match="symbolic links"):
        send(blobs, DATA)
    assert outside.read_bytes() == b"untouched"


def test_two_uploaders_of_one_blob_do_not_mix(blobs: Blobs) -> None:
    async def both() -> list[int | BaseException]:
        writes = [blobs.write(digest(DATA), len(DATA), 0, pieces(DATA)) for _ in range(2)]
        return await asyncio.gather(*writes, return_exceptions=True)

    results = asyncio.run(both())
    assert len(DATA) in results
    assert all(result == len(DATA) or isinstance(result, Conflict) for result in results)
    assert blobs.read(digest(DATA), len(DATA)) == DATA


def test_twenty_uploads_at_once_each_arrive_as_they_were_sent(blobs: Blobs) -> None:
    models = [bytes([number]) * (100_000 + number) for number in range(20)]

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(blobs.write(digest(one), len(one), 0, pieces(one, 7_001)) for one in models))

    assert asyncio.run(all_of_them()) == [len(one) for one in models]
    assert [blobs.read(digest(one), len(one)) for one in models] == models


def test_the_loop_runs_on_while_a_blob_is_written(blobs: Blobs) -> None:
    large = b"\7" * (64 << 20)
    sha256 = digest(large)

    async def watched() -> float:
        longest, done = 0.0, False

        async def tick() -> None:
            nonlocal longest
            while not done:
                before = time.monotonic()
                await asyncio.sleep(0)
                longest = max(longest, time.monotonic() - before)

        ticking = asyncio.create_task(tick())
        await blobs.write(sha256, len(large), 0, pieces(large, 1 << 20))
        done = True
        await ticking
        return longest

    assert asyncio.run(watched()) < 0.5


def test_a_sender_that_falls_silent_is_cut_off_and_can_go_on(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path, reserve=0, share=0, idle=0.2)

    async def silent() -> AsyncIterator[bytes]:
        yield DATA[:1000]
        await asyncio.sleep(60)

    with pytest.raises(Conflict, match="no byte"):
        asyncio.run(blobs.write(digest(DATA), len(DATA), 0, silent()))
    assert send(blobs, DATA, blobs.offset(digest(DATA))) == len(DATA)


def test_a_cancelled_upload_keeps_what_came_and_can_go_on(blobs: Blobs) -> None:
    async def cancelled() -> None:
        arrived = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield DATA[:1000]
            arrived.set()
            await asyncio.sleep(60)

        task = asyncio.create_task(blobs.write(digest(DATA), len(DATA), 0, slow()))
        await asyncio.wait_for(arrived.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert blobs.offset(digest(DATA)) == 1000
        assert await blobs.write(digest(DATA), len(DATA), 1000, pieces(DATA[1000:])) == len(DATA)

    asyncio.run(cancelled())


def test_too_little_free_space_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path, reserve=1 << 60, share=0)
    with pytest.raises(NoSpace) as caught:
        send(blobs, DATA)
    assert caught.value.hint
    assert blobs.offset(digest(DATA)) == 0


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 5000), max_size=6), restarts=st.booleans())
def test_any_sequence_of_cuts_ends_in_the_same_blob(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], restarts: bool
) -> None:
    folder = tmp_path_factory.mktemp("cuts")
    blobs = Blobs(folder, reserve=0, share=0)
    data = DATA[:5000]
    for cut in sorted(cuts):
        if restarts:
            blobs = Blobs(folder, reserve=0, share=0)
        offset = blobs.offset(digest(data))
        asyncio.run(blobs.write(digest(data), len(data), offset, pieces(data[offset:cut], 100)))
    assert send(blobs, data, blobs.offset(digest(data))) == len(data)
    assert blobs.read(digest(data), len(data)) == data
    shutil.rmtree(folder)


UPLOADER = """
import asyncio, sys
from pathlib import Path
from quarterdeck_agent.blobs import Blobs

async def endless():
    chunk = bytes(1 << 20)
    while True:
        yield chunk
        await asyncio.sleep(0.001)

asyncio.run(Blobs(Path(sys.argv[1]), reserve=0, share=0).write(sys.argv[2], 1 << 40 >> 10, 0, endless()))
"""


def test_an_agent_killed_in_the_middle_of_an_upload_goes_on_after_its_restart(tmp_path: Path) -> None:
    size = 1 << 30
    data_digest = "5f" * 32
    agent = subprocess.Popen([sys.executable, "-c", UPLOADER, str(tmp_path), data_digest])
    partial = tmp_path / "blobs/partial" / data_digest
    try:
        deadline = time.monotonic() + 30
        while not (partial.exists() and partial.stat().st_size >= 8 << 20):
            assert time.monotonic() < deadline and agent.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(agent.pid, signal.SIGKILL)
        agent.wait(10)
    blobs = Blobs(tmp_path, reserve=0, share=0)
    there = blobs.offset(data_digest)
    assert there >= 8 << 20
    assert asyncio.run(blobs.write(data_digest, size, there, pieces(b"more"))) == there + 4
    assert partial.read_bytes() == bytes(there) + b"more"


def test_a_restarted_agent_verifies_what_came_before_as_well(tmp_path: Path) -> None:
    first = Blobs(tmp_path, reserve=0, share=0)
    asyncio.run(first.write(digest(DATA), len(DATA), 0, pieces(DATA[:1000])))
    with (tmp_path / "blobs/partial" / digest(DATA)).open("r+b") as partial:
        partial.write(b"damaged")
    with pytest.raises(InvalidInput):
        send(Blobs(tmp_path, reserve=0, share=0), DATA, 1000)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs to fill needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"this machine does not let root mount a tmpfs: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_and_loses_nothing(small_disk: Path) -> None:
    blobs = Blobs(small_disk, reserve=0, share=0)
    send(blobs, DATA)
    ballast = small_disk / "ballast"
    large = os.urandom(1_200_000)

    async def filled_up_meanwhile() -> AsyncIterator[bytes]:
        yield large[:100_000]
        ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 300_000 // 4096 * 4096))
        async for piece in pieces(large[100_000:]):
            yield piece

    with pytest.raises(NoSpace) as caught:
        asyncio.run(blobs.write(digest(large), len(large), 0, filled_up_meanwhile()))
    assert "free disk space" in str(caught.value.hint)
    assert blobs.read(digest(DATA), len(DATA)) == DATA
    ballast.unlink()
    assert send(blobs, large, blobs.offset(digest(large))) == len(large)
