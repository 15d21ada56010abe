"""Real models through the real runtime: silero-vad as TorchScript and the demo's digits, against torch itself."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from quarterdeck_agent.bundle import parse
from tests.agent.runtime.running import ROOT, serving
from tests.models import silence, silero_bundle, silero_direct, silero_request, speech

try:
    import sklearn  # noqa: F401
    import torch  # noqa: F401
except ImportError:
    pytest.skip("needs torch and scikit-learn (extras torch and dev)", allow_module_level=True)

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "digits"
    command = [sys.executable, "-m", "quarterdeck_console.demo.train", str(folder), "--json"]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT / 'console'}:{ROOT / 'agent'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["trained", "trained", "broke"]
    one, two, three = (event["accuracy"] for event in events)
    assert 0.85 < one < two and two > 0.97 and three < 0.5
    return folder


@pytest.mark.parametrize("version", ["5.1.2", "6.2.3"])
def test_silero_answers_as_torch_itself_does_and_forgets_between_requests(tmp_path: Path, version: str) -> None:
    bundle = silero_bundle(tmp_path / "silero", version)
    voice, quiet = speech(), silence()
    expected = silero_direct(bundle / "model.jit", voice)
    assert max(expected) > 0.9
    with serving(bundle, "vad") as running:
        first = running.ask("/v2/models/vad/infer", silero_request(voice))[1]["outputs"]
        assert [(one["name"], one["shape"], one["datatype"]) for one in first] == [
            ("probability", [len(expected)], "FP32")
        ]
        assert first[0]["data"] == pytest.approx(expected, abs=1e-6)
        hushed = running.ask("/v2/models/vad/infer", silero_request(quiet))[1]["outputs"][0]["data"]
        assert max(hushed) < 0.5
        again = running.ask("/v2/models/vad/infer", silero_request(voice))[1]["outputs"][0]["data"]
        assert again == pytest.approx(expected, abs=1e-6)
        wrong = {"inputs": [silero_request(voice)["inputs"][0] | {"shape": [1, 100], "data": [0.0] * 100}]}
        status, problem = running.ask("/v2/models/vad/infer", wrong)
        assert (status, problem["field"]) == (400, "inputs[0].shape")


def test_the_agent_takes_what_the_demo_and_the_helpers_write(digits: Path, tmp_path: Path) -> None:
    for bundle in (*digits.glob("digits-v*"), silero_bundle(tmp_path / "s", "6.2.3", golden=False)):
        parse(tomllib.loads((bundle / "model.toml").read_text()))


@pytest.mark.parametrize(("version", "sound"), [("1", True), ("2", True), ("3", False)])
def test_golden_requests_pass_sound_digits_and_catch_the_broken_ones(digits: Path, version: str, sound: bool) -> None:
    bundle = digits / f"digits-v{version}"
    config = tomllib.loads((bundle / "model.toml").read_text())
    with serving(bundle, "digits") as running:
        body = json.loads((bundle / "golden" / "digits.json").read_text())
        expected = json.loads((bundle / "golden" / "digits.expected.json").read_text())
        answer = running.ask("/v2/models/digits/infer", body)[1]
        assert (answer["outputs"][0]["data"] == expected["outputs"][0]["data"]) is sound
        held = json.loads((digits / "heldout.json").read_text())
        request: dict[str, Any] = {"name": "image", "shape": [len(held["labels"]), 8, 8], "datatype": "FP32"}
        request["data"] = [value for image in held["images"] for value in image]
        outputs = running.ask("/v2/models/digits/infer", {"inputs": [request]})[1]["outputs"]
        right = sum(a == b for a, b in zip(outputs[0]["data"], held["labels"], strict=True)) / len(held["labels"])
        claimed = config["metadata"]["metrics"]["accuracy"]
        assert (right == pytest.approx(claimed, abs=1e-3)) is sound


SCRIPT = """
name = "two"
version = "1"
runtime = "torchscript"
[settings]
file = "m.pt"
outputs = ["total", "product"]
"""


def test_scalars_defaults_and_several_outputs_of_a_scripted_module(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "model.toml").write_text(SCRIPT)
    source = folder / "source.py"
    source.write_text(
        "import torch\nfrom torch import Tensor as T\nfrom typing import Tuple\n"
        "class Two(torch.nn.Module):\n"
        "    def forward(self, a: T, scale: float = 2.0, flag: bool = False) -> Tuple[T, T]:\n"
        "        if flag:\n            return a.sum(), a.prod()\n"
        "        return a.sum() * scale, a.prod()\n"
        "torch.jit.script(Two()).save('m.pt')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "source.py"], cwd=folder, check=True, timeout=60)
    a = {"name": "a", "shape": [3], "datatype": "FP32", "data": [1, 2, 4]}
    scale = {"name": "scale", "shape": [1], "datatype": "FP32", "data": [10]}
    with serving(folder, "two") as running:

        def outputs(*inputs: dict[str, Any]) -> dict[str, Any]:
            status, answer = running.ask("/v2/models/two/infer", {"inputs": list(inputs)})
            assert status == 200, answer
            return {one["name"]: one["data"] for one in answer["outputs"]}

        assert outputs(a) == {"total": [14.0], "product": [8.0]}
        assert outputs(scale, a)["total"] == [70.0]
        assert outputs(a | {"name": "first"}, scale | {"name": "second"})["total"] == [70.0]
        flag = {"name": "flag", "shape": [], "datatype": "BOOL", "data": [True]}
        assert outputs(a, flag)["total"] == [7.0]
        for wrong in ([scale], [a, scale | {"shape": [2], "data": [1, 2]}], [a | {"name": n} for n in "wxyz"]):
            assert running.ask("/v2/models/two/infer", {"inputs": wrong})[0] == 400
