"""When what is known of the GPUs can be built on: one of them that is lost does not make the others unknown."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from quarterdeck_agent.host import nvml_trouble
from quarterdeck_agent.protocol import Gpu, Part, PartState

ANSWERS = Gpu(0, "GPU-a", "H", memory_total=1)
SILENT = Gpu(1, "GPU-b", "H")


@pytest.mark.parametrize(
    ("state", "version", "gpus", "trouble"),
    [
        (PartState.OK, "575", (ANSWERS, SILENT), False),
        (PartState.ABSENT, "", (), False),
        (PartState.FAILED, "575", (ANSWERS, SILENT), False),
        (PartState.UNRESPONSIVE, "575", (ANSWERS, SILENT), False),
        (PartState.UNRESPONSIVE, "575", (SILENT,), True),
        (PartState.FAILED, "", (ANSWERS,), True),
    ],
)
def test_nvml_is_trusted_for_the_gpus_it_answers_for(
    state: PartState, version: str, gpus: tuple[Gpu, ...], trouble: bool
) -> None:
    part = Part("nvml", state, datetime(2026, 11, 23, tzinfo=UTC), version, "it hangs")
    assert bool(nvml_trouble(part, gpus)) is trouble


def test_nobody_knows_before_the_first_look() -> None:
    assert "not been looked at" in nvml_trouble(None, ())
