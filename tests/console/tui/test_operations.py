"""The operations screen: who changed what and how it went, what is under way on top."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from quarterdeck_agent import protocol as p
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.screens import operations_rows
from quarterdeck_console.tui.screens.operations import OperationsScreen
from quarterdeck_console.tui.widgets.pane import Pane
from tests.console.simulation import NOW, Simulation, ago, host_status, operation, simulated_detail
from tests.console.tui.driving import Driver, drive

HOSTILE = "[/x] [@click=app.quit]quit[/] \x1b]52;c;aGk=\x07"


async def opened(d: Driver) -> OperationsScreen:
    await d.press("3")
    await d.shows("KIND")
    await d.shows("freeing GPU 2")
    found = d.view
    assert isinstance(found, OperationsScreen)
    return found


def order(d: Driver) -> list[str]:
    found = d.view.main
    assert found is not None
    return [key[1] for key in found.order]


def pane(d: Driver) -> str:
    return d.view.query_one("#story", Pane).text


def test_what_is_under_way_is_on_top_and_the_rest_is_newest_first() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert order(d) == ["op-swap", "op-embed", "op-whisper", "op-chat"]
        assert "◐ freeing GPU 2  11.0 s" in d.line_with("reranker  ")
        refused = d.line_with("embed  ")
        assert "✖ failed: refused: golden" in refused and "ana" in refused and "gpu-a2" in refused
        d.simulation.delta("gpu-b1", "operation", "new", operation("scale", "vad", "new", at=NOW, by="bo"))
        await d.until(lambda: order(d)[:2] == ["op-swap", "new"], "the newest of those that ended comes second")

    drive(story, size=(140, 32))


def test_times_of_what_is_under_way_go_on_and_it_sinks_when_it_ends() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        d.simulation.at += timedelta(seconds=5)
        await d.until(lambda: "16.0 s" in d.line_with("reranker  "), "the elapsed time goes on")
        running = d.simulation.status["gpu-a1"].operations[0]
        ended = replace(
            running, state=p.OperationState.SUCCEEDED, finished_at=d.simulation.at, at=ago(days=1), steps=()
        )
        d.simulation.delta("gpu-a1", "operation", "op-swap", ended)
        await d.until(lambda: order(d)[0] == "op-embed", "it is not on top any more")

    drive(story, size=(140, 32))


def test_the_pane_tells_steps_diff_and_outcome() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert "✔ staged" in pane(d) and "◐ freeing GPU 2" in pane(d)
        changed = operation(
            "rollback", "vad", "back", at=NOW, why="too slow", changes=(p.Change("version", "vad:7", "vad:6"),)
        )
        d.simulation.delta("gpu-b1", "operation", "back", changed)
        await d.until(lambda: "back" in order(d), "it is listed")
        await d.press("j")
        await d.until(lambda: "vad:7 → vad:6" in pane(d) and "too slow" in pane(d), "its diff is shown")

    drive(story)


def test_a_failed_change_tells_the_record_of_its_failure() -> None:
    simulation = Simulation()
    host = simulation.status["gpu-a2"]
    detail = simulated_detail(host, host.deployments[0])
    failed = replace(detail.revisions[0], operation="op-embed")
    simulation.details[m.Target("gpu-a2", "embed")] = replace(detail, revisions=(failed, *detail.revisions[1:]))

    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("j")
        await d.until(lambda: "│ WARNING tokenizer.json differs" in pane(d), "the last lines are shown")
        await d.press("k", "j")
        assert sum(kind == "detail" for kind, _ in d.simulation.asked) == 1

    drive(story, simulation=simulation)


def test_verbs_are_about_the_deployment_that_was_changed() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("j")
        await d.press("R")
        await d.shows("Roll back embed on gpu-a2")
        await d.press("escape", "l")
        await d.until(lambda: any(kind == "logs" for kind, _ in d.simulation.asked), "logs are asked for")
        wish = next(what for kind, what in d.simulation.asked if kind == "logs")
        assert (wish.targets, wish.revision) == ((m.Target("gpu-a2", "embed"),), 9)
        assert d.simulation.changes() == []

    drive(story)


def test_d_describes_it_and_a_push_has_no_deployment() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        pushed = operation("push", "embed:1.4", "push", at=NOW)
        d.simulation.delta("gpu-a2", "operation", "push", pushed)
        await d.until(lambda: "push" in order(d), "it is listed")
        await d.press("j", "d")
        await d.shows("there is no deployment under the cursor")
        await d.press("j", "d")
        await d.shows("› embed on gpu-a2")

    drive(story)


def test_enter_and_z_give_the_text_the_whole_room() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        for key in ("enter", "z"):
            await d.press(key)
            await d.until(lambda: "OUTCOME" not in d.text, "the table is hidden")
            await d.press("escape")
            await d.until(lambda: "OUTCOME" in d.text, "the table is back")
        assert isinstance(d.view, OperationsScreen)

    drive(story, size=(80, 24))


def test_at_80_by_24_the_outcome_can_be_read() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert "✖ failed: refused: golden" in d.line_with("embed ")
        assert all(len(line) <= 80 for line in d.text.splitlines())

    drive(story, size=(80, 24))


def test_a_lost_hosts_changes_stay() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        d.simulation.lose("gpu-a2")
        await d.shows("1 lost")
        assert "op-embed" in order(d)

    drive(story)


def test_of_very_many_changes_the_newest_are_shown_and_the_rest_is_counted() -> None:
    many = tuple(operation("scale", "vad", f"op-{n}", at=ago(minutes=n)) for n in range(operations_rows.SHOWN + 7))
    running = operation("deploy", "vad", "live", at=ago(days=9), state=p.OperationState.RUNNING, finished_at=None)
    simulation = Simulation({"a": host_status("a", operations=(*many, running))})

    async def story(d: Driver) -> None:
        await d.press("3")
        await d.until(lambda: len(order(d)) == operations_rows.SHOWN + 1, "they are listed")
        assert order(d)[:2] == ["live", "op-0"]
        await d.press("G")
        await d.shows("… and 8 older ones: see qd operations")
        await d.press("d", "l", "R")
        assert not d.app.screen.is_modal

    drive(story, simulation=simulation)


def test_the_command_that_shows_the_same_is_there() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert "qd operations op-swap --host gpu-a1" in d.text

    drive(story, size=(200, 40))


def test_hostile_summaries_steps_and_reasons_are_text() -> None:
    wicked = operation(
        "deploy", HOSTILE, HOSTILE, by=HOSTILE, summary=HOSTILE, detail=HOSTILE, why=HOSTILE, at=NOW, code=HOSTILE,
        state=p.OperationState("[/z]"), steps=(p.StepRecord(HOSTILE, "failed", NOW, 1.0, HOSTILE),),
        changes=(p.Change(HOSTILE, None, HOSTILE),), revision=1,
    )  # fmt: skip

    async def story(d: Driver) -> None:
        await opened(d)
        d.simulation.delta("gpu-a1", "operation", HOSTILE, wicked)
        await d.until(lambda: len(order(d)) == 5, "it is listed")
        for key in ("j", "enter", "escape"):
            await d.press(key)
            assert "\x1b" not in d.text and "\x07" not in d.text
        assert "[@click=app.quit]quit[/]" in pane(d) and d.app.is_running

    drive(story, size=(160, 40))
