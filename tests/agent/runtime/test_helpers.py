"""The bundles that other tests rely on do what they say, started as the catalogue says."""

from __future__ import annotations

import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import quarterdeck_agent
from quarterdeck_agent.bundle import parse
from quarterdeck_agent.catalogue import load
from quarterdeck_agent.drivers.base import expand
from tests.agent.runtime.running import Running, serving, started
from tests.models import trivial_bundle

BUILT_IN = Path(quarterdeck_agent.__file__).parent / "runtimes"


@contextmanager
def trivial(folder: Path, *, wait: bool = True, **options: Any) -> Iterator[Running]:
    """A trivial bundle, started the way the agent would."""
    bundle = trivial_bundle(folder / "trivial", **options)
    config = parse(tomllib.loads((bundle / "model.toml").read_text()))
    launch = load(BUILT_IN, folder).get(config.runtime).launch(config, "process")
    command = [
        word if word == "{port}" else expand(word, port=0, bundle=str(bundle), name="t", python=sys.executable)
        for word in launch.command
    ]
    with started(bundle, *command, env=launch.env) as running:
        if wait:
            running.wait_ready(launch.health_path)
        yield running


def test_the_trivial_server_echoes_and_tells_its_version(tmp_path: Path) -> None:
    with trivial(tmp_path, version="3", answer={"x": [1]}) as running:
        status, answer = running.ask("/predict", {"hello": "ä"})
        assert status == 200
        expected = {"answer": {"x": [1]}, "version": "3", "pid": running.process.pid, "echo": {"hello": "ä"}}
        assert answer == expected


def test_the_trivial_server_streams(tmp_path: Path) -> None:
    with trivial(tmp_path) as running:
        url = f"http://127.0.0.1:{running.port}/stream?chunks=3&every=0.01"
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            assert answer.read().count(b"data: ") == 3


def test_the_trivial_server_misbehaves_as_asked(tmp_path: Path) -> None:
    with trivial(tmp_path / "a", mode="crash_after=2 allocate=64 flood=100 fail") as running:
        assert running.ask("/predict", {})[0] == 500
        assert running.ask("/predict", {})[0] == 500
        assert running.status("VmRSS") > 64 * 1024
        with suppress(OSError):
            running.ask("/predict", {})
        assert running.process.wait(10) == 3
        assert running.output().count("flood line") == 100 and "crashing as asked" in running.output()
    with trivial(tmp_path / "b", mode="never_ready", wait=False) as running:
        until = time.monotonic() + 20
        while "listening" not in running.output() and time.monotonic() < until:
            time.sleep(0.05)
        assert running.ask("/health")[0] == 503
        running.process.terminate()
        assert running.process.wait(10) == 0
    with trivial(tmp_path / "c", mode="exit=7", wait=False) as running:
        assert running.process.wait(10) == 7


AUDIT = """
import sys

def hook(event, args):
    writing = event == "open" and isinstance(args[2], int) and args[2] & 3
    if writing or event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.posix_spawn", "os.fork"):
        print("AUDIT", event, args, file=sys.stderr, flush=True)

sys.addaudithook(hook)
"""


def test_the_runtime_asks_nobody_starts_nothing_and_writes_nowhere(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "sitecustomize.py").write_text(AUDIT + "print('AUDIT armed', file=sys.stderr)\n")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "handler.py").write_text(
        "class Model:\n    def load(self, b, d): pass\n    def predict(self, i): return i\n"
    )
    (bundle / "model.toml").write_text(
        'name = "m"\nversion = "1"\nruntime = "python"\n[settings]\nhandler = "handler:Model"\n'
    )
    agent = Path(quarterdeck_agent.__file__).parents[1]
    # Python itself writes its cache of compiled modules the first time; that is not the runtime's doing.
    quiet = {"PYTHONPATH": f"{tmp_path / 'audit'}:{agent}", "PYTHONDONTWRITEBYTECODE": "1"}
    with serving(bundle, env=quiet) as running:
        assert running.ask("/predict", {"inputs": {"x": 1}}) == (200, {"outputs": {"x": 1}})
        told = [line for line in running.output().splitlines() if line.startswith("AUDIT")]
    assert told == ["AUDIT armed"]
