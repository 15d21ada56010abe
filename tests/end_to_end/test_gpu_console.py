"""`qd gpus` against a real agent: what it says of a fake machine is what that machine is like."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.console.test_json import validate
from tests.end_to_end.bundles import QUICK
from tests.end_to_end.gpu_host import gpu_host, somebody, whole
from tests.end_to_end.rig import until
from tests.nvml.fake import GIB, FakeGpu, FakeMig, FakeProcess, Machine, uuid_of

pytestmark = pytest.mark.usefixtures("nvml_compiler")


def machine(stranger: int) -> Machine:
    """A GPU with somebody's process and memory of nobody's on it, and one that is cut into two."""
    cut = FakeGpu(memory_total=80 * GIB, migs=(FakeMig(gpu_instance=1), FakeMig(gpu_instance=2)))
    (shared,) = whole(0).gpus
    return Machine(gpus=(replace(shared, memory_used=12 * GIB, processes=(FakeProcess(stranger, 9 * GIB),)), cut))


def test_every_gpu_is_told_with_whose_memory_it_is_now_and_over_time(tmp_path: Path) -> None:
    with somebody() as stranger, gpu_host(tmp_path, machine(stranger)) as host:
        label = host.push(tmp_path, "1", {"gpus": 1, "vram": "20GiB"}, 18 * GIB)
        host.agent.must("deploy", label, *QUICK)
        until(lambda: host.gpu(uuid_of(0))["memory_used"] == 30 * GIB, "the model's memory is seen")
        wanted = ("18.0 GiB  toy r1 (toy-1-", f"9.0 GiB  unmanaged pid {stranger} ", "3.0 GiB  unexplained")
        until(lambda: all(words in host.agent.must("gpus").out for words in wanted), "it is known whose it is")

        told = host.agent.must("gpus").out
        assert " 30/80 GiB " in told
        assert [line.split()[1] for line in told.splitlines() if "GiB " in line and " ok " in line] == [
            "0", "1", "1.0", "1.1",
        ]  # fmt: skip

        document = json.loads(host.agent.must("gpus", "--json").out)
        validate(document)
        first = document["items"][0]
        owners = {each["deployment"]: each["memory"] for each in first["use"]["processes"]}
        assert owners == {"toy": 18 * GIB, None: 9 * GIB}
        assert first["use"]["unexplained"] == 3 * GIB
        assert first["facts"]["driver"]

        assert "18.0 GiB" in host.agent.must("describe", "toy").out
        until(lambda: "highest 30G" in host.agent.must("gpus", "--since", "5m", "-m", "memory").out, "it is kept")
        past = json.loads(host.agent.must("gpus", "--since", "5m", "--json").out)
        validate(past)
        assert {(each["gpu"], each["name"]) for each in past["items"]} >= {("0", "gpu.memory"), ("1.1", "gpu.memory")}
