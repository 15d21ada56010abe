"""Names, labels, log lines and cards written to harm whoever looks at them, through every screen and dialog."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quarterdeck_agent import protocol as p
from quarterdeck_console.clean import clean
from quarterdeck_console.tui.messages import LogEntry, Target
from tests.console.simulation import (
    GIB,
    NOW,
    Simulation,
    deployment,
    facts,
    gpu,
    host_status,
    operation,
    simulated_detail,
    version,
)
from tests.console.tui.driving import Driver, drive

EVIL = clean("[/x][@click=app.quit]x[/][bold]\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\u202e$(rm)`'\"")
"""As the client hands it on: it cleans, and what is left is still markup, quotes and brackets."""


def hostile() -> Simulation:
    """One host on which everything is called so."""
    failure = p.Failure(
        NOW, EVIL, p.FailureReason.EXITED, EVIL, 1, None, (EVIL, EVIL), (), (p.Change(EVIL, EVIL, EVIL),)
    )
    steps = (p.StepRecord(EVIL, "failed", NOW, 1.0, EVIL),)
    bad = deployment(
        EVIL, f"{EVIL}:1", 3, summary=EVIL, by=EVIL, state=p.DeploymentState.DEGRADED, failure=failure,
        replicas=(p.Replica("r-1", EVIL, 3, p.ReplicaState.UNREADY, EVIL, EVIL, EVIL, gpus=(EVIL,)),),
    )  # fmt: skip
    status = host_status(
        "gpu-a1",
        parts=(p.Part("nvml", p.PartState.FAILED, NOW, detail=EVIL),),
        gpus=(
            gpu(
                "gpu-a1",
                0,
                name=EVIL,
                uuid=EVIL,
                utilisation=0.5,
                health=p.GpuHealth(EVIL),
                why=EVIL,
                throttle=(EVIL,),
                memory_used=GIB,
            ),
            gpu("gpu-a1", 1, name=EVIL, uuid=f"{EVIL}1", parent=EVIL, profile=EVIL, instance=0),
        ),
        gpu_facts=(
            facts(
                "gpu-a1",
                0,
                uuid=EVIL,
                pci_bus=EVIL,
                driver=EVIL,
                cuda=EVIL,
                compute_mode=EVIL,
                labels=(EVIL,),
                nvlinks=(p.NvLink(0, True, 4, EVIL),),
                xids=(p.XidEvent(NOW, 79, EVIL, EVIL),),
            ),
        ),
        gpu_uses=(
            p.GpuUse(
                EVIL,
                (
                    p.GpuProcess(1, GIB, user=EVIL, command=EVIL),
                    p.GpuProcess(2, GIB, user=EVIL, command=EVIL, replica=EVIL, deployment=EVIL, revision=3),
                ),
            ),
        ),
        deployments=(bad,),
        traffic=(p.Traffic(EVIL, 3, 1.0, rate=1.0, errors=0.5),),
        operations=(
            operation(
                EVIL, EVIL, by=EVIL, summary=EVIL, detail=EVIL, why=EVIL, steps=steps, state=p.OperationState.FAILED
            ),
        ),
        versions=(version(f"{EVIL}:1", by=EVIL, formats=(EVIL,), card=f"# {EVIL}\n\n{EVIL}", runtime=EVIL),),
    )
    target = Target("gpu-a1", EVIL)
    detail = simulated_detail(status, bad)
    revisions = tuple(replace(each, why=EVIL, by=EVIL, handover_why=EVIL, failure=failure) for each in detail.revisions)
    plan = p.Preview(EVIL, 3, EVIL, EVIL, 2.0, (p.Change(EVIL, EVIL, EVIL),), (EVIL,), (EVIL,), EVIL, EVIL)
    line = p.LogLine(NOW, EVIL, 3, "r-1", "stderr", EVIL)
    return Simulation(
        {"gpu-a1": status},
        details={target: replace(detail, revisions=revisions, version=status.versions[0])},
        previews={target: plan},
        log_entries=[LogEntry(target, line), LogEntry(target, note=EVIL)],
    )


WAYS: dict[str, tuple[str, ...]] = {
    "fleet": (), "deployment": ("d",), "logs": ("l",), "yaml": ("y",), "json": ("J",), "versions": ("2",),
    "operations": ("3",), "gpus": ("4",), "one gpu": ("4", "v", "z"),
    "deploy": ("D",), "rollback": ("R",), "scale": ("C",), "restart": ("T",), "stop": ("X",),
    "help": ("question_mark",), "push": ("2", "P", *"[/x]"), "remove a version": ("2", "X"),
    "a version alone": ("2", "z"),
    "revisions compared": ("d", "x"), "a revision's version": ("d", "v"),
    "palette": ("colon", *"describe [/x"), "filter": ("slash", *"[/x][@"),
}  # fmt: skip


@pytest.mark.parametrize("keys", WAYS.values(), ids=WAYS.keys())
def test_nothing_that_is_written_to_harm_does_harm(keys: tuple[str, ...]) -> None:
    async def story(d: Driver) -> None:
        await d.press(*keys)
        for _ in range(6):
            d.simulation.tick()
            await d.pilot.pause(0.1)
        assert d.app.is_running
        assert not d.app._exit, "no action was run"
        assert not set("\x1b\x07\x9b\u202e") & set(d.text)
        for offset in ((5, 4), (20, 9), (40, 12), (60, 9), (30, 20)):
            await d.pilot.click(offset=offset)
        await d.press("down", "up", "enter")
        await d.pilot.pause(0.1)
        assert not d.app._exit, "no click ran an action"
        assert not d.simulation.changes()
        for _ in range(4):
            await d.press("escape")

    drive(story, simulation=hostile(), size=(120, 40))


def test_hostile_text_is_shown_as_it_was_written() -> None:
    async def story(d: Driver) -> None:
        assert "[/x][@click=a" in d.text
        await d.press("T")
        await d.shows("[/x][@click=app.quit]x[/][bold]\\x1b]52;c;")

    drive(story, simulation=hostile(), size=(160, 40))


def test_a_hostile_error_of_a_host_is_only_text() -> None:
    async def story(d: Driver) -> None:
        d.simulation.lose("gpu-a1", EVIL)
        await d.shows("unreachable for 0s, last values: [/x][@click=app.quit]x[/]")
        assert not d.app._exit

    drive(story, simulation=hostile(), size=(160, 40))
