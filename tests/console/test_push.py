"""Pushing: only what is missing travels, and a cut costs nothing but time."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quarterdeck_console import bundle, operations
from quarterdeck_console.config import Host
from quarterdeck_console.errors import Conflict, Usage
from tests.console.fake_agent import FakeAgent, problem
from tests.console.running import qd, write_bundle, write_fleet

BIG = bytes(range(256)) * 4096 * 3


def test_hashing_ends_when_nobody_waits_for_it_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process cannot end before its threads: leaving the console must not wait for a large bundle."""
    chunks, began = [], threading.Event()

    def read(_folder: Path, _allow_pickle: bool, told: Callable[[int], None]) -> None:
        for number in range(5_000):
            chunks.append(number)
            told(1)
            began.set()
            time.sleep(0.001)

    async def story() -> None:
        async with contextlib.aclosing(operations.read_bundle(tmp_path, False)) as steps:
            async for _ in steps:
                await asyncio.to_thread(began.wait, 10)
                break

    (tmp_path / "model.toml").write_text('name = "digits"\nversion = "1"\nruntime = "torchscript"\n')
    monkeypatch.setattr(bundle, "read", read)
    asyncio.run(story())  # waits for the threads, as the process does at its end
    assert len(chunks) < 2_500


def test_a_push_sends_every_content_once_and_makes_the_version(agent: FakeAgent, fleet: Path, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", {"model.pt": BIG, "copy.pt": BIG, "labels/de.txt": b"eins", "empty": b""})
    ran = qd(fleet, "push", str(folder))
    assert ran.code == 0, ran.err
    assert ran.out.startswith("digits:7 on box: ")
    assert bytes(agent.blobs[hashlib.sha256(BIG).hexdigest()]) == BIG
    assert len(agent.asked("PUT /v1/blobs/")) == 4
    (made,) = agent.asked("POST /v1/versions")
    names = [file["path"] for file in made.json()["files"]]
    assert names == ["copy.pt", "empty", "labels/de.txt", "model.pt", "model.toml"]
    assert made.json()["config"] == {"name": "digits", "version": "7", "runtime": "torchscript"}


def test_pushing_again_sends_nothing(agent: FakeAgent, fleet: Path, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", {"model.pt": BIG})
    assert qd(fleet, "push", str(folder)).code == 0
    sent = len(agent.asked("PUT"))
    ran = qd(fleet, "push", str(folder))
    assert "was there already" in ran.out
    assert len(agent.asked("PUT")) == sent


def test_a_push_goes_on_where_it_was_cut(agent: FakeAgent, fleet: Path, tmp_path: Path) -> None:
    agent.cut_uploads_after = [1 << 20, 1 << 20]
    folder = write_bundle(tmp_path / "b", {"model.pt": BIG})
    ran = qd(fleet, "push", str(folder))
    assert ran.code == 0, ran.err
    assert "going on from" in ran.err
    assert bytes(agent.blobs[hashlib.sha256(BIG).hexdigest()]) == BIG
    offsets = [int(request.query["offset"]) for request in agent.asked("PUT /v1/blobs/")]
    assert max(offsets) >= 2 << 20


def test_a_label_of_another_version_is_not_tried_again(agent: FakeAgent, tmp_path: Path) -> None:
    package = bundle.read(write_bundle(tmp_path / "b", {"model.pt": b"x" * 10}), False, lambda _: None)
    agent.answers["POST /v1/pushes"] = problem(409, "conflict", "label names another version", field="config.version")

    async def push() -> None:
        async for _ in operations.push(Host("box", agent.url), package):
            pass

    with pytest.raises(Conflict, match="label names another"):
        asyncio.run(push())
    assert len(agent.asked("POST /v1/pushes")) == 1


def test_a_push_gives_up_when_nothing_gets_through(
    agent: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "ATTEMPTS", 2)
    package = bundle.read(write_bundle(tmp_path / "b", {"model.pt": b"x" * 10}), False, lambda _: None)
    busy = problem(409, "conflict", "somebody else is sending it at this moment")
    agent.answers |= {f"PUT /v1/blobs/{sha256}": busy for sha256 in package.sources}
    stages: list[str] = []

    async def push() -> None:
        async for progress in operations.push(Host("box", agent.url), package):
            stages.append(progress.stage)

    with pytest.raises(Conflict, match="somebody else"):
        asyncio.run(push())
    assert stages.count("retrying") == 2


def test_a_label_of_another_version_is_a_conflict(agent: FakeAgent, fleet: Path, tmp_path: Path) -> None:
    agent.answers["POST /v1/pushes"] = problem(409, "conflict", "digits:7 names another version already")
    assert qd(fleet, "push", str(write_bundle(tmp_path / "b", {"m": b"x"}))).code == 7


def test_an_early_refusal_of_an_upload_is_told(agent: FakeAgent, fleet: Path, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", {"model.pt": BIG})
    sha256 = hashlib.sha256(BIG).hexdigest()
    agent.answers[f"PUT /v1/blobs/{sha256}"] = problem(507, "no_space", "3 bytes are free", hint="make room")
    ran = qd(fleet, "push", str(folder), "--json")
    assert ran.code == 1
    assert (ran.json["error"]["code"], ran.json["error"]["hint"]) == ("no_space", "make room")


def test_pickles_are_admitted_only_by_name_of_the_flag(agent: FakeAgent, fleet: Path, tmp_path: Path) -> None:
    folder = str(write_bundle(tmp_path / "b", {"model.pkl": b"x"}))
    qd(fleet, "push", folder)
    qd(fleet, "push", folder, "--allow-pickle")
    assert [request.json()["allow_pickle"] for request in agent.asked("POST /v1/pushes")] == [False, True]


def test_a_folder_without_model_toml_is_usage(fleet: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        ran = qd(fleet, "push", str(folder))
        assert ran.code == 2
        assert "model.toml" in ran.err
    (tmp_path / "model.toml").write_text("name = [")
    assert "not valid TOML" in qd(fleet, "push", str(tmp_path)).err


def test_a_model_toml_nested_without_end_is_usage_and_no_traceback(fleet: Path, tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text('name = "digits"\na = ' + "[" * 3000 + "]" * 3000)
    ran = qd(fleet, "push", str(tmp_path))
    assert ran.code == 2
    assert "nested too deeply" in ran.err and "Traceback" not in ran.err


def test_what_cannot_be_part_of_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    folder = write_bundle(tmp_path / "b", {"inside": b"x"})
    (folder / "fine").symlink_to(folder / "inside")
    assert "fine" in [source.name for source in bundle.list_files(folder)]
    (folder / "out").symlink_to(tmp_path / "secret")
    with pytest.raises(Usage, match="leads out"):
        bundle.list_files(folder)
    (folder / "out").unlink()
    (folder / "loop").symlink_to(folder)
    with pytest.raises(Usage, match="link to a folder"):
        bundle.list_files(folder)
    (folder / "loop").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(Usage, match="neither a file nor a folder"):
        bundle.list_files(folder)


def test_a_file_written_during_the_push_is_noticed(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", {"model.pt": b"before"})
    sources = {source.name: source for source in bundle.list_files(folder)}
    (folder / "model.pt").write_bytes(b"after!")
    os.utime(folder / "model.pt", ns=(1, 1))
    with pytest.raises(Usage, match="written during the push"):
        bundle.digest(sources["model.pt"], lambda _: None)


def test_caches_and_version_control_are_no_part_of_a_bundle(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", {"a.py": b"", "__pycache__/a.pyc": b"", ".git/HEAD": b"", "b.pyc": b""})
    assert [source.name for source in bundle.list_files(folder)] == ["a.py", "model.toml"]


def test_a_push_to_two_hosts_of_which_one_is_dead_is_partial(agent: FakeAgent, tmp_path: Path) -> None:
    path = write_fleet(tmp_path / "f.toml", {"box": agent.url, "dead": f"unix://{tmp_path}/no.sock"})
    ran = qd(path, "push", str(write_bundle(tmp_path / "b", {"m": b"x"})), "--host", "*", "--json")
    assert ran.code == 6
    assert [item["host"] for item in ran.json["items"]] == ["box"]
    assert [error["host"] for error in ran.json["errors"]] == ["dead"]
