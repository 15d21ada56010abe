"""The runtime as a real process with small handlers: paths, errors, batching, start and end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.runtime.running import Running, serving
from tests.models import toml

HANDLER = """
import os, threading, time
import numpy as np

class Model:
    def load(self, bundle, device):
        self.device, self.bundle = device, bundle
        time.sleep(float(os.environ.get("LOAD_SECONDS", "0")))
        print("loaded", bundle.name, device)

    def predict(self, inputs):
        if "boom" in inputs:
            raise KeyError("a secret of the model")
        if "nan" in inputs:
            return {"nan": np.array([np.nan])}
        if "slow" in inputs:
            time.sleep(float(np.asarray(inputs["slow"]).reshape(-1)[0]))
        if "env" in inputs:
            return {"omp": [os.environ["OMP_NUM_THREADS"]], "thread": [threading.current_thread().name]}
        return {"sum": np.asarray(inputs["x"]).sum(axis=-1), "device": [self.device]}
"""

BATCHING = """
import numpy as np

class Model:
    def load(self, bundle, device):
        pass

    def predict(self, inputs):
        raise AssertionError("with settings.batch only predict_batch is called")

    def predict_batch(self, requests):
        values = [float(inputs["x"][0]) for inputs in requests]
        if any(value < 0 for value in values):
            raise ValueError("negative")
        return [{"twice": [2 * value], "together": [len(requests)]} for value in values]
"""


def write(folder: Path, code: str, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "handler.py").write_text(code)
    table = {"name": "sums", "version": "7", "runtime": "python", "settings": {"handler": "handler:Model", **settings}}
    (folder / "model.toml").write_text(toml(table))
    return folder


def infer(*data: float, name: str = "x", **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": name, "shape": [len(data)], "datatype": "FP32", "data": list(data)}], **more}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = write(tmp_path_factory.mktemp("runtime") / "sums", HANDLER, max_body=10_000)
    # As a container has it: no HOME, a read-only bundle.
    folder.chmod(0o555)
    with serving(folder, "adder") as process:
        yield process


def test_it_tells_that_it_lives_and_is_ready(running: Running) -> None:
    assert running.ask("/v2/health/live") == (200, {"live": True})
    assert running.ask("/v2/health/ready") == (200, {"ready": True})
    assert running.ask("/v2/models/adder/ready") == (200, {"name": "adder", "ready": True})
    assert running.ask("/v2/models/adder/versions/7/ready")[0] == 200


def test_it_tells_what_it_is(running: Running) -> None:
    status, server = running.ask("/v2")
    assert status == 200 and server["name"] == "quarterdeck_runtime"
    assert server["facts"]["device"] == "cpu" and server["facts"]["threads"] == 1
    assert server["facts"]["model"] == "sums:7"
    assert running.ask("/v2/models/adder")[1] == {
        "name": "adder",
        "versions": ["7"],
        "platform": "python",
        "inputs": [],
        "outputs": [],
    }


def test_tensors_go_in_and_out(running: Running) -> None:
    status, answer = running.ask("/v2/models/adder/infer", infer(1, 2, 3.5, id="a-1"))
    assert status == 200
    assert answer == {
        "model_name": "adder",
        "model_version": "7",
        "id": "a-1",
        "outputs": [
            {"name": "sum", "shape": [], "datatype": "FP32", "data": [6.5]},
            {"name": "device", "shape": [1], "datatype": "BYTES", "data": ["cpu"]},
        ],
    }
    only = running.ask("/v2/models/adder/versions/7/infer", infer(1, outputs=[{"name": "device"}]))[1]
    assert [output["name"] for output in only["outputs"]] == ["device"]


def test_plain_json_goes_in_and_out(running: Running) -> None:
    assert running.ask("/predict", {"inputs": {"x": [[1, 2], [3, 4]]}}) == (
        200,
        {"outputs": {"sum": [3, 7], "device": ["cpu"]}},
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v2/models/adder/infer", b"{", 400, "body"),
        ("/v2/models/adder/infer", b'{"inputs": [{"name": "x"}]}', 400, "inputs[0].datatype"),
        ("/v2/models/other/infer", b"{}", 404, "name"),
        ("/v2/models/adder/versions/8/infer", b"{}", 404, "version"),
        ("/predict", b"[]", 400, "inputs"),
        ("/predict", b"{" + b" " * 20_000 + b"}", 413, None),
        ("/nowhere", b"{}", 404, None),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    running: Running, path: str, body: bytes, status: int, field: str | None
) -> None:
    answered, problem = running.ask(path, raw=body)
    assert answered == status
    assert problem.get("field") == field and problem["error"]


def test_a_failing_model_tells_its_log_all_and_the_caller_only_the_kind(running: Running) -> None:
    status, problem = running.ask("/v2/models/adder/infer", infer(1, name="boom"))
    assert status == 500
    assert problem == {"error": "the model failed with KeyError; the replica's log has the traceback"}
    assert "a secret of the model" in running.output() and "handler.py" in running.output()
    assert running.ask("/v2/models/adder/infer", infer(1, name="nan"))[0] == 500
    assert running.ask("/v2/models/adder/infer", infer(1))[0] == 200


def test_threads_are_those_of_the_cpu_ask(running: Running) -> None:
    outputs = running.ask("/predict", {"inputs": {"env": 1}})[1]["outputs"]
    assert outputs == {"omp": ["1"], "thread": ["model"]}


def test_it_answers_health_while_the_model_works(running: Running) -> None:
    slow = threading.Thread(target=running.ask, args=("/predict", {"inputs": {"slow": [1.5], "x": [1]}}))
    slow.start()
    began = time.monotonic()
    assert running.ask("/v2/health/ready")[0] == 200
    assert time.monotonic() - began < 1
    slow.join()


def test_it_is_one_small_process_that_rests_when_idle(running: Running) -> None:
    assert running.children() == []
    assert running.status("VmRSS") < 150 * 1024
    before = _ticks(running)
    time.sleep(1)
    assert _ticks(running) - before <= 3


def test_it_writes_no_access_log_and_nothing_into_the_bundle(running: Running) -> None:
    running.ask("/v2/health/ready")
    assert "GET /v2" not in running.output()
    assert "sums:7 is ready after" in running.output()
    bundle = running.log.parent / "sums"
    assert sorted(path.name for path in bundle.iterdir()) == ["handler.py", "model.toml"]


def _ticks(running: Running) -> int:
    fields = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_it_is_not_ready_before_the_model_is_loaded_and_ends_at_once_when_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "slow", HANDLER)
    with serving(folder, wait=False, env={"LOAD_SECONDS": "30"}) as running:
        running.wait_ready("/v2/health/live")
        assert running.ask("/v2/health/ready") == (503, {"ready": False})
        assert running.ask("/v2/models/m/infer", infer(1))[0] == 503
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5) == 0


def test_a_request_in_flight_is_answered_before_it_ends(tmp_path: Path) -> None:
    folder = write(tmp_path / "sums", HANDLER)
    answers: list[tuple[int, Any]] = []
    with serving(folder) as running:
        body = {"inputs": {"slow": [1.0], "x": [1, 2]}}
        asking = threading.Thread(target=lambda: answers.append(running.ask("/predict", body)))
        asking.start()
        # The request has arrived once its connection shows up on the server's side.
        until = time.monotonic() + 10
        while _established(running.port) < 1 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)
        running.process.send_signal(signal.SIGTERM)
        asking.join(10)
        assert answers == [(200, {"outputs": {"sum": 3, "device": ["cpu"]}})]
        assert running.process.wait(5) == 0


def _established(port: int) -> int:
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(1 for line in lines if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01")


def test_requests_that_come_together_are_answered_together(tmp_path: Path) -> None:
    folder = write(tmp_path / "batch", BATCHING, batch=8, max_wait_ms=300)
    answers: dict[float, tuple[int, Any]] = {}

    def ask(value: float) -> None:
        answers[value] = runtime.ask("/v2/models/m/infer", infer(value))

    with serving(folder) as runtime:
        asking = [threading.Thread(target=ask, args=(float(value),)) for value in range(8)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        outputs = {
            value: {one["name"]: one["data"] for one in answer["outputs"]} for value, (_, answer) in answers.items()
        }
        assert {value: output["twice"] for value, output in outputs.items()} == {float(v): [2.0 * v] for v in range(8)}
        assert max(output["together"][0] for output in outputs.values()) > 1


def test_a_bad_request_spoils_only_itself_in_a_batch(tmp_path: Path) -> None:
    folder = write(tmp_path / "batch", BATCHING, batch=4, max_wait_ms=300)
    answers: dict[float, int] = {}

    def ask(value: float) -> None:
        answers[value] = runtime.ask("/v2/models/m/infer", infer(value))[0]

    with serving(folder) as runtime:
        asking = [threading.Thread(target=ask, args=(value,)) for value in (1.0, -1.0, 2.0, 3.0)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    assert answers == {1.0: 200, -1.0: 500, 2.0: 200, 3.0: 200}


@pytest.mark.parametrize(
    ("handler", "settings", "code", "told"),
    [
        ("raise RuntimeError('no such weights')", {}, 1, "no such weights"),
        (
            "class Model:\n    def load(self, b, d): raise MemoryError('too big')\n    def predict(self, i): pass",
            {},
            1,
            "too big",
        ),
        ("class Other: pass", {}, 2, "handler has no class Model"),
        ("class Model: pass", {}, 2, "no method load"),
        (HANDLER, {"batch": 4}, 2, "no predict_batch"),
        (HANDLER, {"handler": "nothing"}, 2, "settings.handler"),
        (HANDLER, {"batch": 0}, 2, "settings.batch"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_a_bundle_that_cannot_be_served_ends_the_process_with_the_reason(
    tmp_path: Path, handler: str, settings: dict[str, Any], code: int, told: str
) -> None:
    with serving(write(tmp_path / "bad", handler, **settings), wait=False) as running:
        assert running.process.wait(30) == code
        assert told in running.output()
