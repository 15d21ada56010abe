"""What Prometheus is told of GPUs: dcgm-exporter's names, units and labels, and what we add to them."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from quarterdeck_agent.drivers.nvml import NvmlSeen
from quarterdeck_agent.gpus import dcgm
from quarterdeck_agent.gpus.placement import Claim
from quarterdeck_agent.metrics import exposition
from quarterdeck_agent.protocol import (
    DeploymentState,
    DeploymentStatus,
    Gpu,
    GpuFacts,
    GpuHealth,
    GpuProcess,
    GpuUse,
    HostInfo,
    HostStatus,
    NvLink,
    Replica,
    ReplicaState,
    Revision,
    Spec,
    XidEvent,
)
from tests.agent.gpus.nvml_host import host
from tests.nvml.fake import FakeGpu, FakeMig, FakeNvml, Machine, uuid_of

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
INFO = HostInfo('gpu"1', "i", "0.1", "os", "k", "x86_64", 2, 1 << 30, "b", NOON, "docker", "http://x", "/d")
GIB = 1 << 30

FULL = Gpu(
    index=0, uuid="GPU-0", name="NVIDIA H100 80GB HBM3", memory_total=80 * GIB, memory_used=20 * GIB, utilisation=0.37,
    temperature=61.0, power=412.5, power_limit=700.0, memory_free=59 * GIB, memory_reserved=GIB,
    utilisation_memory=0.29, utilisation_encoder=0.0, utilisation_decoder=0.05, clock_graphics=1_980_000_000,
    clock_memory=2_619_000_000, throttle=("power cap",), fan=0.4, performance_state=0, pcie_sent=2_000_000,
    pcie_received=3_500_000,
)  # fmt: skip
FACTS = GpuFacts(
    "GPU-0", pci_bus="00000000:18:00.0", driver="570.86.15", cuda="12.8", mig_enabled=False, pcie_generation=5,
    pcie_generation_max=5, pcie_width=16, pcie_width_max=16, power_limit_max=700.0, temperature_slowdown=87.0,
    temperature_shutdown=92.0, clock_graphics_max=1_980_000_000, clock_memory_max=2_619_000_000,
    nvlinks=(NvLink(0, True, 4, "GPU-1"), NvLink(1, False)), ecc_enabled=True, ecc_corrected=3, ecc_uncorrected=0,
    ecc_corrected_ever=12, ecc_uncorrected_ever=1, retired_pages=0, retired_pending=False, remapped_rows=5,
    remapped_rows_uncorrectable=2, remap_pending=True, remap_failed=False, temperature_memory=58.0, pcie_replays=4,
    xids=(XidEvent(NOON, 94, "Contained memory error", "restart the app"), XidEvent(NOON, 13, "", "")),
)  # fmt: skip
BARE = Gpu(1, "GPU-1", "Tesla T4")

DASHBOARD = {
    "DCGM_FI_DEV_GPU_TEMP": ("Hostname", "gpu"),
    "DCGM_FI_DEV_POWER_USAGE": ("Hostname", "gpu"),
    "DCGM_FI_DEV_SM_CLOCK": ("Hostname", "gpu", "UUID"),
    "DCGM_FI_DEV_GPU_UTIL": ("Hostname", "gpu"),
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": ("Hostname", "gpu"),
    "DCGM_FI_DEV_FB_USED": ("Hostname", "gpu"),
    "DCGM_FI_DEV_FB_FREE": ("Hostname", "gpu"),
}
"""What the panels and variables of the exporter's published dashboard (grafana.com 12239) select, and by which labels.

It has one more panel, DCGM_FI_PROF_PIPE_TENSOR_ACTIVE, which takes profiling counters that NVML does not have.
"""


def status(*gpus: Gpu, facts: tuple[GpuFacts, ...] = (FACTS,), uses: tuple[GpuUse, ...] = ()) -> HostStatus:
    return HostStatus(INFO, gpus=gpus, gpu_facts=facts, gpu_uses=uses)


def families(text: bytes | str) -> dict[str, Metric]:
    """By the name as it stands in the text; the parser gives counters and their samples an ending of its own."""
    shown = text.decode() if isinstance(text, bytes) else text
    return {family.name: family for family in text_string_to_metric_families(shown)}


def values(text: bytes | str, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    family = families(text).get(name)
    return {tuple(s.labels.get(label, "") for label in labels): s.value for s in family.samples} if family else {}


def test_every_field_is_told_by_name_type_and_unit() -> None:
    text = dcgm.exposition(status(FULL))
    assert {name.removeprefix("DCGM_FI_"): family.samples[0].value for name, family in families(text).items()} == {
        "DEV_SM_CLOCK": 1980, "DEV_MEM_CLOCK": 2619, "DEV_MAX_SM_CLOCK": 1980, "DEV_MAX_MEM_CLOCK": 2619,
        "DEV_GPU_TEMP": 61, "DEV_MEMORY_TEMP": 58, "DEV_SLOWDOWN_TEMP": 87, "DEV_SHUTDOWN_TEMP": 92,
        "DEV_POWER_USAGE": 412.5, "DEV_ENFORCED_POWER_LIMIT": 700, "DEV_POWER_MGMT_LIMIT_MAX": 700,
        "DEV_FAN_SPEED": 40, "DEV_PSTATE": 0,
        "DEV_PCIE_TX_THROUGHPUT": 2000, "DEV_PCIE_RX_THROUGHPUT": 3500, "PROF_PCIE_TX_BYTES": 2_000_000,
        "PROF_PCIE_RX_BYTES": 3_500_000, "DEV_PCIE_REPLAY_COUNTER": 4, "DEV_PCIE_LINK_GEN": 5,
        "DEV_PCIE_LINK_WIDTH": 16, "DEV_PCIE_MAX_LINK_GEN": 5, "DEV_PCIE_MAX_LINK_WIDTH": 16,
        "DEV_GPU_UTIL": 37, "PROF_GR_ENGINE_ACTIVE": 0.37,
        "DEV_MEM_COPY_UTIL": 29, "DEV_ENC_UTIL": 0, "DEV_DEC_UTIL": 5, "DEV_XID_ERRORS": 94,
        "DEV_FB_TOTAL": 81920, "DEV_FB_FREE": 60416, "DEV_FB_USED": 20480, "DEV_FB_RESERVED": 1024,
        "DEV_FB_USED_PERCENT": 0.253165, "DEV_ECC_SBE_VOL_TOTAL": 3, "DEV_ECC_DBE_VOL_TOTAL": 0,
        "DEV_ECC_SBE_AGG_TOTAL": 12, "DEV_ECC_DBE_AGG_TOTAL": 1, "DEV_RETIRED_PENDING": 0,
        "DEV_CORRECTABLE_REMAPPED_ROWS": 3, "DEV_UNCORRECTABLE_REMAPPED_ROWS": 2, "DEV_ROW_REMAP_PENDING": 1,
        "DEV_ROW_REMAP_FAILURE": 0, "DEV_MIG_MODE": 0,
    }  # fmt: skip
    assert len(families(text)) == len(dcgm.FIELDS)


@pytest.mark.parametrize("field", dcgm.FIELDS, ids=lambda field: field.name)
def test_each_name_stands_alone_and_is_parsed_with_its_type(field: dcgm.Field) -> None:
    assert re.fullmatch(r"DCGM_FI_(DEV|PROF)_[A-Z0-9_]+", field.name)
    assert [other.name for other in dcgm.FIELDS].count(field.name) == 1
    family = families(exposition(status(FULL)))[field.name]
    assert (family.type, family.documentation) == (field.type, field.text)
    assert len(family.samples) == 1


def test_a_gpu_has_the_exporter_s_labels() -> None:
    [sample] = families(dcgm.exposition(status(FULL)))["DCGM_FI_DEV_GPU_UTIL"].samples
    assert sample.labels == {
        "gpu": "0", "UUID": "GPU-0", "pci_bus_id": "00000000:18:00.0", "device": "nvidia0",
        "modelName": "NVIDIA H100 80GB HBM3", "Hostname": 'gpu"1', "DCGM_FI_DRIVER_VERSION": "570.86.15",
    }  # fmt: skip


def test_the_published_dashboard_finds_its_series() -> None:
    found = families(exposition(status(FULL)))
    for name, labels in DASHBOARD.items():
        assert name in found, name
        for sample in found[name].samples:
            assert all(sample.labels.get(label) for label in labels), name


def test_what_was_not_measured_is_left_out() -> None:
    assert dcgm.exposition(status(BARE, facts=())) == ""
    assert dcgm.exposition(status()) == ""
    text = exposition(status(FULL, BARE))
    assert values(text, "DCGM_FI_DEV_GPU_TEMP", "UUID") == {("GPU-0",): 61}
    unfit = replace(FULL, memory_total=None, memory_reserved=None, clock_graphics=None)
    assert "DCGM_FI_DEV_SM_CLOCK" not in families(dcgm.exposition(status(unfit)))
    assert "DCGM_FI_DEV_FB_USED_PERCENT" not in families(dcgm.exposition(status(unfit)))


def test_a_gpu_without_an_xid_tells_0_once_its_driver_was_heard() -> None:
    text = dcgm.exposition(status(FULL, BARE, facts=(replace(FACTS, xids=()),)))
    assert values(text, "DCGM_FI_DEV_XID_ERRORS", "UUID") == {("GPU-0",): 0}


def test_a_lost_gpu_still_tells_its_xid() -> None:
    lost = Gpu(0, "GPU-0", "H100", health=GpuHealth.LOST)
    xid = replace(FACTS, xids=(XidEvent(NOON, 79, "fell off the bus", "reboot"),))
    text = exposition(status(lost, facts=(xid,)))
    assert values(text, "DCGM_FI_DEV_XID_ERRORS", "UUID") == {("GPU-0",): 79}
    assert "DCGM_FI_DEV_GPU_TEMP" not in families(text)


def test_a_mig_instance_has_its_gpu_s_labels_and_its_own_memory_and_sums_count_nothing_twice() -> None:
    cut = replace(FULL, mig=True, utilisation=None)
    part = Gpu(0, "MIG-7", FULL.name, 10 * GIB, 7 * GIB, parent="GPU-0", profile="1g.10gb", instance=0)
    parts = (part, replace(part, uuid="MIG-8", memory_used=8 * GIB, instance=1))
    about = (replace(FACTS, mig_enabled=True), GpuFacts("MIG-7", gpu_instance=7), GpuFacts("MIG-8", gpu_instance=8))
    text = exposition(status(cut, *parts, BARE, facts=about))
    labels = ("gpu", "UUID", "device", "GPU_I_ID", "GPU_I_PROFILE")
    assert values(text, "DCGM_FI_DEV_FB_USED", *labels) == {
        ("0", "GPU-0", "nvidia0", "7", "1g.10gb"): 7168,
        ("0", "GPU-0", "nvidia0", "8", "1g.10gb"): 8192,
    }
    assert values(text, "DCGM_FI_DEV_POWER_USAGE", "UUID") == {("GPU-0",): 412.5}
    assert values(text, "DCGM_FI_DEV_XID_ERRORS", "UUID") == {("GPU-0",): 94}
    for sample in families(text)["DCGM_FI_DEV_FB_USED"].samples:
        assert sample.labels["pci_bus_id"] == "00000000:18:00.0"


def test_what_nvml_tells_of_a_machine_comes_out_with_dcgm_s_labels(fake_nvml: FakeNvml) -> None:
    small = FakeMig(9, profile="1g.10gb", memory_used=3 * GIB)
    machine = Machine((FakeGpu(temperature=44, power=90_500), FakeGpu(migs=(FakeMig(7, memory_used=2 * GIB), small))))

    async def run() -> NvmlSeen:
        with host(fake_nvml, machine) as there:
            return await there.read()

    seen = asyncio.run(run())
    text = exposition(HostStatus(INFO, gpus=seen.gpus, gpu_facts=seen.facts))
    assert values(text, "DCGM_FI_DEV_POWER_USAGE", "gpu", "UUID")["0", uuid_of(0)] == 90.5
    assert values(text, "DCGM_FI_DEV_FB_USED", "gpu", "UUID", "GPU_I_ID", "GPU_I_PROFILE") == {
        ("0", uuid_of(0), "", ""): 4,
        ("1", uuid_of(1), "7", "1g.10gb"): 2048,
        ("1", uuid_of(1), "9", "1g.10gb"): 3072,
    }
    for sample in families(text)["DCGM_FI_DEV_GPU_TEMP"].samples:
        assert re.fullmatch(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.0", sample.labels["pci_bus_id"])
        assert sample.labels["DCGM_FI_DRIVER_VERSION"] == seen.version


def test_labels_are_escaped() -> None:
    odd = replace(FULL, name='a"b\\c\nd')
    [sample] = families(dcgm.exposition(status(odd)))["DCGM_FI_DEV_GPU_TEMP"].samples
    assert sample.labels["modelName"] == 'a"b\\c\nd'


# --- our own ---------------------------------------------------------------------------------------------------


USE = GpuUse(
    "GPU-0",
    (
        GpuProcess(1, 8 * GIB, replica="r1", deployment="digits", revision=4),
        GpuProcess(2, 2 * GIB, replica="r1", deployment="digits", revision=4),
        GpuProcess(3, 3 * GIB, replica="r2", deployment="vad", revision=1),
        GpuProcess(4711, 5 * GIB, user="alice", command="python"),
        GpuProcess(4712, GIB, user="bob", command="jupyter"),
    ),
    unexplained=GIB,
)


def test_memory_is_told_by_owner_and_the_rest_as_unmanaged_or_unexplained() -> None:
    text = exposition(status(FULL, uses=(USE, GpuUse("GPU-gone", (GpuProcess(9, 1),)))))
    owner = ("uuid", "deployment", "revision", "replica")
    assert values(text, "quarterdeck_replica_gpu_memory_bytes", *owner) == {
        ("GPU-0", "digits", "4", "r1"): 10 * GIB,
        ("GPU-0", "vad", "1", "r2"): 3 * GIB,
    }
    assert values(text, "quarterdeck_gpu_memory_unmanaged_bytes", "uuid") == {("GPU-0",): 6 * GIB}
    assert values(text, "quarterdeck_gpu_memory_unexplained_bytes", "uuid") == {("GPU-0",): GIB}


def test_an_owner_of_unknown_size_has_no_sum() -> None:
    unknown = replace(USE, processes=(*USE.processes, GpuProcess(5, None, replica="r2", deployment="vad", revision=1)))
    text = exposition(status(FULL, uses=(unknown,)))
    assert set(values(text, "quarterdeck_replica_gpu_memory_bytes", "replica")) == {("r1",)}


def test_a_gpu_that_nobody_uses_has_no_unmanaged_memory() -> None:
    text = exposition(status(FULL, uses=(GpuUse("GPU-0"),)))
    assert values(text, "quarterdeck_gpu_memory_unmanaged_bytes", "uuid") == {("GPU-0",): 0}


def test_claims_are_told_with_their_deployment_and_revision_and_a_whole_gpu_as_its_size() -> None:
    replica = Replica("r1", "digits", 4, ReplicaState.READY, "docker", "c1", gpus=("GPU-0",))
    digits = DeploymentStatus(
        "digits", 1, DeploymentState.SERVING, "", 4, 4, "digits:1", "0" * 64, 1, 1, "", "", NOON, "ada",
        replicas=(replica,),
    )  # fmt: skip
    claims = (Claim("GPU-0", "r1", "digits", size=30 * GIB), Claim("GPU-0", "r9", "vad"), Claim("GPU-gone", "r1"))
    text = exposition(replace(status(FULL), deployments=(digits,)), claims=claims)
    assert values(text, "quarterdeck_replica_gpu_claimed_bytes", "deployment", "revision", "replica") == {
        ("digits", "4", "r1"): 30 * GIB,
        ("vad", "", "r9"): 80 * GIB,
    }


def test_a_revision_s_peak_is_told_once_it_was_measured() -> None:
    made = Revision("digits", 4, Spec("0" * 64, "digits:1"), NOON, "ada", "op-1", gpu_memory_peak=9 * GIB)
    text = exposition(status(FULL), [made, replace(made, number=5, gpu_memory_peak=None)])
    name = "quarterdeck_revision_gpu_memory_peak_bytes"
    assert values(text, name, "deployment", "revision") == {("digits", "4"): 9 * GIB}


def test_health_is_one_of_four_states_and_throttling_is_told_by_reason() -> None:
    text = exposition(status(replace(FULL, health=GpuHealth.SICK), BARE))
    states = values(text, "quarterdeck_gpu_health", "uuid", "state")
    assert {key: states["GPU-0", key] for key in ("ok", "degraded", "sick", "lost")} == {
        "ok": 0, "degraded": 0, "sick": 1, "lost": 0
    }  # fmt: skip
    assert sum(states.values()) == 2
    assert values(text, "quarterdeck_gpu_throttled", "uuid", "reason") == {("GPU-0", "power cap"): 1}


def test_nvlinks_are_told_up_or_down() -> None:
    links = values(exposition(status(FULL)), "quarterdeck_gpu_nvlink_up", "uuid", "link", "peer")
    assert links == {("GPU-0", "0", "GPU-1"): 1, ("GPU-0", "1", ""): 0}
