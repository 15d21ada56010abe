"""The last look before a start: a place that somebody took since the plan was made is not used."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quarterdeck_agent.bundle import ModelConfig
from quarterdeck_agent.catalogue import Launch
from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.drivers.base import Found, ReplicaSpec, Resources
from quarterdeck_agent.errors import AgentError
from quarterdeck_agent.performing import Performer, Recipe
from quarterdeck_agent.seen import Seen
from quarterdeck_agent.steps import Start
from quarterdeck_agent.wanted import WantedDeployment
from tests.agent.placement.rack import Card, asks, sight
from tests.agent.plan.world import BOOT, found, revision


@dataclass
class Desk:
    """Engine and observer in one, with the GPUs as they are seen at this moment."""

    card: Card
    trouble: str = ""
    started_: list[ReplicaSpec] = field(default_factory=list)

    def seen(self) -> Seen:
        now = sight(self.card)
        return Seen(BOOT, gpus=now.gpus, gpu_uses=now.uses, gpu_trouble=self.trouble)

    async def start(self, spec: ReplicaSpec) -> Found:
        self.started_.append(spec)
        return found(spec.id, spec.body)

    def started(self, _: Found) -> None:
        return

    def start_planned(self, folder: Path, resources: Resources) -> None:
        """Perform a start on gpu-0 that was planned a moment ago."""

        async def stage(_: str) -> Path:
            return folder

        model = ModelConfig("toy", "1", "command", resources=resources)
        recipe = Recipe(model, Launch(None, ("serve",), {}, 8000, "/", "/"), "body-1", {})
        known: dict[str, Any] = dict.fromkeys(Performer.__dataclass_fields__, SimpleNamespace())
        known |= {"engine": self, "seen": self, "clock": SystemClock(), "logs_folder": folder, "stage": stage}
        performer = Performer(**{**known, "recipes": lambda _: recipe})
        target = revision(1, image="")
        step = Start(target, "m-1-0", ("gpu-0",) if resources.gpus else ())
        asyncio.run(performer.perform(WantedDeployment("m", 1, target=target), step))


def test_a_start_goes_to_the_devices_that_were_planned(tmp_path: Path) -> None:
    desk = Desk(Card())
    desk.start_planned(tmp_path, asks(40))
    assert [spec.gpus for spec in desk.started_] == [("gpu-0",)]


@pytest.mark.parametrize(
    ("card", "trouble", "says"),
    [
        (Card(held=((None, 70),)), "", "70 GiB held by unmanaged pid 4711 (alice, python)"),
        (Card(), "the GPUs cannot be seen now: NVML hangs", "NVML hangs"),
    ],
)
def test_who_came_since_the_plan_is_named_and_nothing_is_started(
    tmp_path: Path, card: Card, trouble: str, says: str
) -> None:
    desk = Desk(card, trouble)
    with pytest.raises(AgentError) as caught:
        desk.start_planned(tmp_path, asks(40))
    assert says in caught.value.detail and desk.started_ == []


def test_what_needs_no_gpu_is_started_whatever_nvml_says(tmp_path: Path) -> None:
    desk = Desk(Card(), "NVML hangs")
    desk.start_planned(tmp_path, Resources())
    assert len(desk.started_) == 1
