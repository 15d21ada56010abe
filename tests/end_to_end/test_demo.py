"""`qd demo` as a user runs it: the whole story, for people and for programs, and nothing left of it afterwards."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.end_to_end.rig import ROOT

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("sklearn") is None:
    pytest.skip("needs torch and scikit-learn (extra demo)", allow_module_level=True)

pytestmark = [pytest.mark.torch, pytest.mark.envoy]

ORDER = (
    *("story", "trained", "trained", "broke", "bundled", "agent"),
    *("pushed", "deployed", "predicted", "accuracy"),
    *("pushed", "planned", "deployed", "load"),
    *("pushed", "refused", "load"),
    *("rolled back", "load", "rolled back", "load"),
    *("history", "logs", "end"),
)


@dataclass(frozen=True)
class Place:
    """Where demos of one test make their folders, so that what they leave behind is seen."""

    folder: Path

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        path = os.pathsep.join((str(ROOT / "agent"), str(ROOT / "console")))
        kept = {key: value for key, value in os.environ.items() if not key.startswith("QUARTERDECK_")}
        return subprocess.Popen(
            [sys.executable, "-m", "quarterdeck_console", *words],
            env=kept | {"PYTHONPATH": path, "TMPDIR": str(self.folder)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, code: int = 0, deadline: float = 200.0, **environment: str) -> str:
        with self.start(*words, **environment) as process:
            try:
                out, err = process.communicate(timeout=deadline)
            finally:
                process.kill()
        assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
        return out

    def processes(self) -> list[str]:
        """The command lines of all processes that were told of a path in here."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if f"{self.folder}/" in line:
                        found.append(line)
        return found

    def nothing_left(self) -> None:
        assert list(self.folder.iterdir()) == []
        assert self.processes() == []


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    folder = tmp_path / "tmp"
    folder.mkdir()
    made = Place(folder)
    yield made
    for kept in folder.glob("qd-demo-*"):
        made.run("demo", "--end", str(kept))


def events(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def judge(told: list[dict[str, Any]]) -> None:
    """Every promise of the story, by its figures."""
    of: dict[str, list[dict[str, Any]]] = {}
    for event in told:
        assert isinstance(event["text"], str) and event["text"]
        of.setdefault(event["event"], []).append(event)
    one, two = (each["accuracy"] for each in of["trained"])
    assert 0.9 < one < two and of["broke"][0]["accuracy"] < 0.2
    assert of["accuracy"][0] | {"version": "1", "accuracy": one} == of["accuracy"][0]
    assert "it is a 5" in of["predicted"][0]["text"]
    assert [each["failed"] for each in of["load"]] == [0, 0, 0, 0]
    assert [set(each["by_version"]) for each in of["load"]] == [{"1", "2"}, {"2"}, {"1", "2"}, {"1", "2"}]
    assert all(each["requests"] == sum(each["by_version"].values()) > 20 for each in of["load"])
    assert of["refused"][0]["exit_code"] == 1 and "golden" in of["refused"][0]["problem"]
    assert [each["to"] for each in of["rolled back"]] == ["1", "2"]
    assert of["history"][0]["revisions"] == 5 and of["logs"][0]["lines"] >= 3
    assert of["end"][0] | {"kept": None, "left": [], "exit_code": 0} == of["end"][0]


def test_it_tells_programs_the_whole_story_and_leaves_nothing_behind(place: Place) -> None:
    told = events(place.run("demo", "--json"))
    assert tuple(event["event"] for event in told) == ORDER
    judge(told)
    place.nothing_left()


def test_kept_it_leaves_a_working_host_and_says_how_to_reach_and_how_to_end_it(place: Place) -> None:
    out = place.run("demo", "--keep")
    assert "0 failed" in out and "refused, exit code 1" in out
    (folder,) = place.folder.iterdir()
    assert f"export QUARTERDECK_HOST=unix://{folder}/run/agent.sock" in out
    assert f"qd demo --end {folder}" in out
    status = json.loads(place.run("status", "--json", QUARTERDECK_HOST=f"unix://{folder}/run/agent.sock"))
    assert [(each["label"], each["state"]) for each in status["items"]] == [("digits:2", "serving")]
    ended = place.run("demo", "--end", str(folder))
    assert "nothing of it is left" in ended
    place.nothing_left()


def test_interrupted_it_cleans_up(place: Place) -> None:
    with place.start("demo", "--json") as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if json.loads(line)["event"] == "pushed":
                    break
            # In the middle of a deploy, as far as anybody can aim.
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130, out + err
    assert [event["event"] for event in events(out)] == ["interrupted", "end"], out
    assert events(out)[-1]["left"] == []
    place.nothing_left()


def test_the_folder_of_nobodys_demo_is_not_ended(place: Place, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    told = events(place.run("demo", "--end", str(tmp_path / "precious"), "--json", code=1))
    assert [event["event"] for event in told] == ["failed"]
    assert (tmp_path / "precious").is_dir()


def of_docker(instance: str) -> list[str]:
    """The containers and networks of one agent."""
    label = f"label=quarterdeck.owner={instance}"
    networks = images.docker("network", "ls", "-q", "--filter", label).split()
    return images.docker("ps", "-aq", "--filter", label).split() + networks


@pytest.mark.docker
def test_in_containers_the_story_is_the_same_and_no_container_or_network_stays(place: Place) -> None:
    told = []
    with place.start("demo", "--engine", "docker", "--json") as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                told.append(json.loads(line))
                if told[-1]["event"] == "deployed":
                    (instance,) = (file.read_text().strip() for file in place.folder.glob("qd-demo-*/data/instance"))
                    assert len(of_docker(instance)) > 1
            assert process.wait(20) == 0
        finally:
            process.kill()
    (image,) = (event for event in told if event["event"] == "image")
    assert "quarterdeck/runtime-python" in image["text"]
    assert tuple(event["event"] for event in told if event is not image) == ORDER
    judge(told)
    assert of_docker(instance) == []
    place.nothing_left()
