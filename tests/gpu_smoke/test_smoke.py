"""The smoke test of GPUs, over the fake NVML and a simulated nvidia-smi of the same machine."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gpu_smoke.compare import table, verdict_of
from tests.gpu_smoke.figures import theirs
from tests.nvml.fake import GIB, MIB, FakeGpu, FakeMig, FakeNvml, FakeProcess, Machine
from tests.nvml.simulated_smi import document, listed, simulated_smi

ROOT = Path(__file__).parents[2]
LEAVE_OUT = shlex.join([sys.executable, "-c", 'print(\'{"left_out": "not asked"}\')'])


def smoke(
    fake: FakeNvml | None, folder: Path, told: Machine | None, child: str = LEAVE_OUT, pids: str = "own"
) -> tuple[int, str, str]:
    """What the command does over a fake library and a simulated nvidia-smi that tells of `told`."""
    program = "no-nvidia-smi-here" if told is None else str(simulated_smi(folder / "smi", told))
    path = os.pathsep.join(str(ROOT / part) for part in ("agent", "console", ""))
    environment = os.environ | {"PYTHONPATH": path} | (fake.env if fake else {})
    command = [sys.executable, "-m", "tests.gpu_smoke", "--nvidia-smi", program, "--child", child]
    command += ["--pids", pids]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return ran.returncode, ran.stdout, ran.stderr


BUSY = FakeGpu(
    memory_used=30 * GIB + 512 * 1024,
    utilisation_gpu=88,
    temperature=71,
    power=512_340,
    clock_graphics=1755,
    pstate=2,
    pcie_generation=4,
    pcie_width=8,
    ecc_corrected=12,
    ecc_uncorrected=1,
    ecc_corrected_ever=120,
    remapped_corrected=2,
    remapped_uncorrected=1,
    remap_pending=1,
    compute_mode=3,
    persistence=0,
    processes=(FakeProcess(4_000_001, 20 * GIB), FakeProcess(4_000_002, 700 * MIB, "graphics")),
)
OLD = FakeGpu(
    name="Tesla T4",
    mig_mode=None,
    retired_corrected=2,
    retired_uncorrected=1,
    retired_pending=0,
    remapped_corrected=None,
    remapped_uncorrected=None,
    remap_pending=None,
    remap_failed=None,
    ecc=0,
    ecc_corrected=None,
    ecc_uncorrected=None,
    power_limit=70_000,
)
CUT = FakeGpu(
    utilisation_gpu=None,
    utilisation_memory=None,
    migs=(FakeMig(7, processes=(FakeProcess(4_000_003, 2 * GIB),), memory_used=2 * GIB), FakeMig(9, profile="2g.20gb")),
)
MANY = Machine(gpus=(BUSY, OLD, CUT))


def test_all_figures_agree_with_an_nvidia_smi_of_the_same_machine(nvml_compiler: str, tmp_path: Path) -> None:
    code, out, err = smoke(FakeNvml(tmp_path / "fake", MANY), tmp_path, MANY)
    assert code == 0, out + err
    rows = [line.split() for line in out.splitlines()]
    assert ["gpu0", "temperature", "71", "°C", "71", "°C", "ok"] in rows
    assert ["gpu0", "ecc_uncorrected", "1", "1", "ok"] in rows
    assert ["gpu0", "process", "4000001", "20,480", "MiB", "20,480", "MiB", "ok"] in rows
    assert ["gpu0", "remapped_rows", "3", "3", "ok"] in rows
    assert ["gpu1", "retired_pages", "3", "3", "ok"] in rows
    assert ["gpu2", "mig", "1g.10gb", "memory_used", "2,048", "MiB", "2,048", "MiB", "ok"] in rows
    assert ["gpu2", "mig", "2g.20gb", "profile", "2g.20gb", "2g.20gb", "ok"] in rows
    assert ["gpu2", "mig", "1g.10gb", "process", "4000003", "2,048", "MiB", "2,048", "MiB", "ok"] in rows
    assert ["gpu0", "fan", "–", "–", "neither"] in rows
    assert ", 0 differ," in out
    assert "attribution was not checked: not asked" in out


@pytest.mark.parametrize(
    ("figure", "wrong"),
    [
        ("name", {"name": "NVIDIA A100"}),
        ("memory_used", {"memory_used": 31 * GIB}),
        ("temperature", {"temperature": 40}),
        ("power", {"power": 90_000}),
        ("performance_state", {"pstate": 8}),
        ("pcie_width", {"pcie_width": 16}),
        ("ecc_corrected", {"ecc_corrected": 13}),
        ("persistence", {"persistence": 1}),
        ("pci_bus", {"bus": "00000000:AA:00.0"}),
        ("process 4000001", {"processes": BUSY.processes[1:]}),
        ("process 7", {"processes": (*BUSY.processes, FakeProcess(7, GIB))}),
        ("process 4000001", {"processes": (FakeProcess(4_000_001, 19 * GIB), BUSY.processes[1])}),
    ],
)
def test_a_figure_that_differs_is_named_and_fails_the_test(
    nvml_compiler: str, tmp_path: Path, figure: str, wrong: dict[str, object]
) -> None:
    code, out, _ = smoke(FakeNvml(tmp_path / "fake", MANY), tmp_path, MANY.changed(0, **wrong))
    assert code == 1
    differing = [line for line in out.splitlines() if line.endswith("differs")]
    assert any(line.startswith(f"gpu0           {figure}") or f" {figure} " in line for line in differing), out
    assert len(differing) <= 2


def test_a_gpu_that_only_one_side_knows_differs(nvml_compiler: str, tmp_path: Path) -> None:
    fewer = replace(MANY, gpus=MANY.gpus[:2])
    code, out, _ = smoke(FakeNvml(tmp_path / "fake", MANY), tmp_path, fewer)
    assert code == 1
    assert sum(line.endswith("differs") for line in out.splitlines()) == 3


def test_a_machine_without_a_driver_is_told_plainly(nvml_compiler: str, tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path / "fake", Machine(loaded="absent"))
    code, out, err = smoke(fake, tmp_path, MANY)
    assert (code, out) == (2, "")
    assert err.startswith("no GPU was checked: ")


def test_a_machine_without_nvidia_smi_is_told_plainly(nvml_compiler: str, tmp_path: Path) -> None:
    code, _, err = smoke(FakeNvml(tmp_path / "fake", MANY), tmp_path, None)
    assert code == 2
    assert "there is no no-nvidia-smi-here on this machine" in err


@pytest.mark.parametrize(("factor", "code", "verdict"), [("1", 0, "ok"), ("0.9", 1, "differs")])
def test_memory_that_a_child_takes_must_be_found_to_be_its_own_to_the_mib(
    nvml_compiler: str, tmp_path: Path, factor: str, code: int, verdict: str
) -> None:
    fake = FakeNvml(tmp_path / "fake")
    child = shlex.join([sys.executable, "-m", "tests.nvml.simulated_program", str(tmp_path / "fake"), factor])
    found, out, err = smoke(fake, tmp_path, Machine(), child)
    assert found == code, out + err
    taken = next(line for line in out.splitlines() if "memory attributed" in line)
    assert taken.split()[-4:] == ["512", "MiB", "taken", verdict]


def test_processes_of_the_host_that_nvidia_smi_leaves_out_in_a_container_do_not_differ(
    nvml_compiler: str, tmp_path: Path
) -> None:
    code, out, err = smoke(FakeNvml(tmp_path / "fake", MANY), tmp_path, MANY.changed(0, processes=()), pids="host")
    assert code == 0, out + err
    assert sum("process 400000" in line and line.endswith("only ours") for line in out.splitlines()) == 2
    assert "docker run --pid=host" in out


@pytest.mark.parametrize(
    ("pid", "factor", "code", "figure"),
    [
        ("4000009", "1", 0, "memory of a pid outside"),
        ("4000009", "0.9", 1, "is not found by its pid"),
        ("none", "1", 0, "memory used (no pids)"),
        ("none", "0.9", 1, "memory used (no pids)"),
    ],
)
def test_memory_of_a_child_whose_pid_nvml_does_not_tell_must_be_found_all_the_same(
    nvml_compiler: str, tmp_path: Path, pid: str, factor: str, code: int, figure: str
) -> None:
    fake = FakeNvml(tmp_path / "fake")
    words = [sys.executable, "-m", "tests.nvml.simulated_program", str(tmp_path / "fake"), factor, pid]
    found, out, err = smoke(fake, tmp_path, Machine(), shlex.join(words), "host")
    assert found == code, out + err
    assert any(figure in line and line.startswith("child") for line in out.splitlines()), out


# --- the reading of nvidia-smi -----------------------------------------------------------------------------------


def test_what_nvidia_smi_does_not_tell_is_no_figure() -> None:
    told = next(iter(theirs(document(Machine().changed(0, temperature=None)), "").values()))
    assert told.values["temperature"] is None
    assert told.values["fan"] is None


@pytest.mark.parametrize(
    ("elements", "figure", "value"),
    [
        ("<power_readings><power_draw>61.25 W</power_draw></power_readings>", "power", 61.25),
        ("<gpu_power_readings><instant_power_draw>3.99 W</instant_power_draw></gpu_power_readings>", "power", 3.99),
        (
            "<ecc_errors><volatile><single_bit><total>4</total></single_bit></volatile></ecc_errors>",
            "ecc_corrected",
            4.0,
        ),
        (
            "<ecc_errors><volatile><sram_uncorrectable_parity>1</sram_uncorrectable_parity>"
            "<sram_uncorrectable_secded>2</sram_uncorrectable_secded><dram_uncorrectable>3</dram_uncorrectable>"
            "</volatile></ecc_errors>",
            "ecc_uncorrected",
            6.0,
        ),
        (
            "<gpu_power_readings><average_power_draw>68.57 W</average_power_draw><instant_power_draw>68.92 W"
            "</instant_power_draw></gpu_power_readings>",
            "power",
            68.57,
        ),
        (
            "<temperature><gpu_temp>29 C</gpu_temp><gpu_temp_tlimit>58 C</gpu_temp_tlimit>"
            "<gpu_temp_slow_tlimit_threshold>-2 C</gpu_temp_slow_tlimit_threshold></temperature>",
            "temperature_slowdown",
            None,
        ),
        ("<compute_mode>Insufficient Permissions</compute_mode>", "compute_mode", None),
        ("<fan_speed>Requested functionality has been deprecated</fan_speed>", "fan", None),
        ("<remapped_rows>N/A</remapped_rows>", "remapped_rows", None),
        ("<compute_mode>Exclusive_Process</compute_mode>", "compute_mode", "exclusive_process"),
    ],
)  # fmt: skip
def test_figures_are_found_where_other_versions_of_nvidia_smi_put_them(
    elements: str, figure: str, value: float | str | None
) -> None:
    xml = f"<?xml version='1.0'?><nvidia_smi_log><gpu id='0'><uuid>GPU-1</uuid>{elements}</gpu></nvidia_smi_log>"
    assert theirs(xml, "")["GPU-1"].values[figure] == value


def test_the_names_of_driver_610_and_what_is_said_of_a_lost_gpu_before_the_xml_are_understood() -> None:
    said = "Unable to determine the device handle for GPU1: 0000:0B:00.0: Unknown Error\n"
    about = "<kmd_version>610.57.04</kmd_version><cuda_umd_version>13.3</cuda_umd_version>"
    gpu = "<gpu id='0'><uuid>GPU-1</uuid><processes></processes></gpu>"
    told = theirs(f"{said}<?xml version='1.0'?><nvidia_smi_log>{about}{gpu}</nvidia_smi_log>", "")["GPU-1"]
    assert (told.values["driver"], told.values["cuda"], told.processes) == ("610.57.04", "13.3", {})


def test_what_is_not_nvidia_smis_xml_is_refused() -> None:
    with pytest.raises(ValueError, match="gave no XML"):
        theirs("No devices were found", "")
    with pytest.raises(ValueError, match="not <nvidia_smi_log>"):
        theirs("<html/>", "")


def test_instances_have_the_uuids_of_the_list() -> None:
    told = theirs(document(MANY), listed(MANY))
    assert [each.values["profile"] for each in told.values() if "mig" in each.name] == ["1g.10gb", "2g.20gb"]


@pytest.mark.parametrize(
    ("value", "them", "later", "verdict"),
    [
        (50.0, 51.0, 50.0, "ok"),
        (50.0, 60.0, 50.0, "differs"),
        (50.0, 60.0, 70.0, "ok"),
        (None, 60.0, None, "only nvidia-smi"),
        (50.0, None, 50.0, "only ours"),
        (None, None, None, "neither"),
    ],
)
def test_what_moves_agrees_when_it_lies_between_our_two_readings(
    value: float | None, them: float | None, later: float | None, verdict: str
) -> None:
    assert verdict_of("temperature", value, them, later) == verdict


def test_the_table_has_a_head() -> None:
    assert table([]).splitlines()[0].split() == ["GPU", "figure", "quarterdeck", "nvidia-smi"]
