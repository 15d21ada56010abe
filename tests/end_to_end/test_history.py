"""What a real agent remembers of its gauges when it is started again, and what it tells Prometheus."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from prometheus_client.parser import text_string_to_metric_families

from quarterdeck_agent import historyfile
from tests.end_to_end.rig import Agent, until
from tests.nvml.fake import GIB, FakeGpu, FakeNvml, Machine, uuid_of


def series(host: Agent, name: str, key: str = "", **query: str) -> dict[str, Any] | None:
    status, answer = host.api("GET", f"/v1/series?{urlencode({'name': name, 'key': key, **query})}")
    return answer if status == 200 else None


def sampled(host: Agent, value: float) -> bool:
    """Whether the GPU's memory was seen to be `value`."""
    found = series(host, "gpu.memory", uuid_of(0))
    return found is not None and any(sample["value"] == value for sample in found["samples"])


def test_gauges_outlive_the_agent_and_a_damaged_history_does_not_keep_it_from_starting(
    tmp_path: Path, fake_nvml: FakeNvml
) -> None:
    fake_nvml.write(Machine((FakeGpu(memory_used=20 * GIB),)))
    host = Agent(tmp_path / "host", "process", {"sample_interval": "0.2"}, variables=fake_nvml.env)
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    try:
        host.start()
        until(lambda: sampled(host, 20 * GIB), "the GPU's memory is sampled")
        status, text = host.api("GET", "/metrics")
        assert status == 200
        told = {family.name: family.samples for family in text_string_to_metric_families(text.decode())}
        assert [sample.value for sample in told["DCGM_FI_DEV_FB_USED"]] == [20 * 1024]
        assert [sample.labels["uuid"] for sample in told["quarterdeck_gpu_health"]] == [uuid_of(0)] * 4
        host.stop()
        key, now = ("gpu.memory", uuid_of(0)), int(time.time() // 60)
        kept = historyfile.read(host.data_folder / "history.sqlite", key, now - 5, now)
        assert kept is not None and (20 * GIB, 20 * GIB) in kept.values()
        file = historyfile.HistoryFile(host.data_folder / "history.sqlite")
        file.keep([historyfile.Minute(now - 120, {key: (10 * GIB, 11 * GIB)})], since=0, size=1 << 30)
        file.close()

        fake_nvml.write(Machine((FakeGpu(memory_used=30 * GIB),)))
        host.start()
        until(lambda: sampled(host, 30 * GIB), "the GPU is sampled again")
        found = series(host, "gpu.memory", uuid_of(0), since=yesterday)
        assert found is not None and found["step"] == 60
        measured = [sample for sample in found["samples"] if sample["value"] is not None]
        assert (measured[0]["value"], measured[0]["max"]) == (10 * GIB, 11 * GIB)
        assert 20 * GIB <= measured[1]["value"] < 30 * GIB  # the restart may lie within one minute
        assert measured[-1]["max"] == 30 * GIB
        _, listed = host.api("GET", "/v1/series")
        assert {"name": "gpu.memory", "key": uuid_of(0), "unit": "bytes"} in listed
        host.stop()

        (host.data_folder / "history.sqlite").write_bytes(b"not a database" * 1000)
        host.start()
        host.stop()
        assert "history.sqlite.damaged" in host.log
        assert (host.data_folder / "history.sqlite.damaged").exists()
    finally:
        host.clear()
