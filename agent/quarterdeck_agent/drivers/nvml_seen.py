"""What one reading of NVML tells: the values between the driver and those who watch GPUs. Nothing here calls NVML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from quarterdeck_agent.protocol import Gpu, GpuFacts, PartState


@dataclass(frozen=True, slots=True)
class NvmlProcess:
    """One process on a GPU as the driver lists it. `memory` in bytes, `utilisation` 0..1 of the GPU's time.

    Either is `None` where the driver does not tell it. A process that computes and draws is listed once, as compute.
    """

    pid: int
    memory: int | None = None
    utilisation: float | None = None
    kind: Literal["compute", "graphics"] = "compute"


@dataclass(frozen=True, slots=True)
class NvmlEvent:
    """Something the driver reported about a GPU (`uuid`); `code` is the Xid's number, `None` for ECC errors."""

    uuid: str
    kind: Literal["xid", "ecc_corrected", "ecc_uncorrected"]
    code: int | None
    at: datetime


@dataclass(frozen=True, slots=True)
class NvmlSeen:
    """What NVML told: how it is, why it is not well, and what it says of the GPUs.

    `gpus` are in the order of their index, each followed by its MIG instances, and `facts` name the same uuids. A GPU
    that is lost, or that does not answer, stays with health LOST and its gauges `None`. `processes` are by uuid; a uuid
    that is missing could not be asked, an empty tuple means that nobody is there. `events` came since the last reading.
    """

    state: PartState
    detail: str = ""
    version: str = ""
    gpus: tuple[Gpu, ...] = ()
    facts: tuple[GpuFacts, ...] = ()
    processes: Mapping[str, tuple[NvmlProcess, ...]] = field(default_factory=dict)
    events: tuple[NvmlEvent, ...] = ()
