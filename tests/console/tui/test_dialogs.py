"""Dialogs: the plan before the question, No by default, `y` or nothing, names for protected hosts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from textual.screen import Screen

from quarterdeck_agent import protocol as p
from quarterdeck_console.errors import Conflict
from quarterdeck_console.tui.messages import Target, Wish
from tests.console.simulation import Simulation, fleet_file, simulated_preview, version
from tests.console.tui.driving import Driver, drive

HOSTS = ("gpu-a1", "gpu-a2", "gpu-b1", "cpu-c1")
OPEN: list[tuple[tuple[str, ...], str]] = [
    (("j", "j", "D"), "y deploy"),
    (("j", "j", "R"), "y roll back"),
    (("j", "j", "C", "down"), "y scale"),
    (("j", "j", "T"), "y restart"),
    (("j", "j", "X"), "y stop"),
    (("colon", *"rm embed", "enter"), "y remove"),
]
NAMES = ["deploy", "rollback", "scale", "restart", "stop", "remove"]


async def opened(d: Driver, keys: tuple[str, ...], ready: str) -> None:
    """Open a dialog and wait for its plan."""
    await d.press(*keys)
    await d.shows(ready)


async def asked(d: Driver) -> list[Any]:
    """The changes that were asked for, after everything that was pressed has had its effect."""
    await d.until(lambda: not d.app.screen.is_modal, "the dialog is closed")
    await d.pilot.pause(0.05)
    return d.simulation.changes()


@pytest.mark.parametrize(("keys", "ready"), OPEN, ids=NAMES)
def test_no_changes_nothing(keys: tuple[str, ...], ready: str) -> None:
    async def story(d: Driver) -> None:
        for no in ("escape", "n", "enter", "space"):
            await d.press("g")
            await opened(d, keys, ready)
            while d.app.focused is not None and d.app.focused.id != "no":
                await d.press("enter")
            await d.press(no)
            assert not await asked(d), no

    drive(story)


@pytest.mark.parametrize(("keys", "ready"), OPEN, ids=NAMES)
def test_enter_as_often_as_you_like_never_confirms(keys: tuple[str, ...], ready: str) -> None:
    async def story(d: Driver) -> None:
        await opened(d, keys, ready)
        await d.press(*["enter"] * 12)
        await d.pilot.pause(0.05)
        assert not d.simulation.changes()

    drive(story)


@pytest.mark.parametrize(("keys", "ready"), OPEN, ids=NAMES)
def test_y_does_it_with_the_generation_of_the_plan(keys: tuple[str, ...], ready: str) -> None:
    kind = NAMES[OPEN.index((keys, ready))]

    async def story(d: Driver) -> None:
        await opened(d, keys, ready)
        while d.app.focused is not None and d.app.focused.id != "no":
            await d.press("enter")
        await d.press("y")
        found = await d.until(d.simulation.changes, "the change is asked for")
        wish, target = found[0]
        assert (wish.kind, target) == (kind, Target("gpu-a2", "embed") if kind != "remove" else target)
        assert wish.generations == (8,)
        await d.shows("succeeded")

    drive(story)


def test_y_typed_into_a_field_is_a_letter() -> None:
    async def story(d: Driver) -> None:
        await opened(d, ("j", "j", "D"), "y deploy")
        await d.press("tab", "y")
        assert d.app.screen.is_modal
        assert not d.simulation.changes()

    drive(story)


@pytest.mark.parametrize("keys", [("enter", "enter"), ("y", "y"), ("escape", "escape", "enter")])
def test_a_key_that_comes_while_a_dialog_closes_closes_nothing_else(keys: tuple[str, ...]) -> None:
    async def story(d: Driver) -> None:
        await opened(d, ("j", "j", "R"), "y roll back")
        dialog = d.app.screen
        for key in keys:
            dialog.call_later(dialog.action_no if key != "y" else dialog.action_confirm)  # type: ignore[attr-defined]
        await d.until(lambda: not d.app.screen.is_modal, "the dialog is closed")
        await d.press("j")
        assert d.app.is_running and len(d.app.screen_stack) == 1

    drive(story)


def test_the_plan_and_the_command_are_shown_before_the_question() -> None:
    async def story(d: Driver) -> None:
        await d.press("j", "D")
        await d.press(*["tab"] * 6, *"freed")
        await d.shows("hold: needs 38 GiB on one GPU")
        for text in (
            "requests wait about 25.0 s",
            "reranker:2.0 → reranker:2.1",
            "reranker:2.0 starts again",
            "[ No ]",
        ):
            assert text in d.text, text

    async def command(d: Driver) -> None:
        await d.press("j", "D")
        await d.press(*["tab"] * 5, "down", "down", "down")
        await d.shows("--handover hold")
        assert "qd deploy" in d.text

    drive(story, size=(100, 40))
    drive(command, size=(100, 40))


def test_a_plan_that_is_not_there_yet_cannot_be_confirmed() -> None:
    async def story(d: Driver) -> None:
        await d.press("j", "j", "C")
        await d.shows("is what is wanted already")
        await d.press("enter", "y")
        await d.pilot.pause(0.05)
        assert d.app.screen.is_modal
        assert not d.simulation.changes()

    drive(story)


def test_a_refused_plan_says_why_and_cannot_be_confirmed() -> None:
    refused = Conflict("embed is being removed", host="gpu-a2", hint="wait until it is gone")
    simulation = Simulation(previews={Target("gpu-a2", "embed"): refused})

    async def story(d: Driver) -> None:
        await d.press("j", "j", "T")
        await d.shows("✖ refused   embed is being removed")
        assert "wait until it is gone" in d.text
        assert "nothing can be done" in d.text
        await d.press("y")
        assert d.app.screen.is_modal
        assert not d.simulation.changes()

    drive(story, simulation=simulation)


def test_of_many_targets_those_whose_plan_is_refused_are_left_out() -> None:
    simulation = Simulation(previews={Target("gpu-a1", "llama-chat"): Conflict("busy")})

    async def story(d: Driver) -> None:
        await d.press("space", "j", "space", "T")
        await d.shows("✖ refused   busy")
        await d.shows("y restart")
        await d.press("y")
        found = await d.until(d.simulation.changes, "the other is restarted")
        assert [target for _, target in found] == [Target("gpu-a2", "embed")]

    drive(story, simulation=simulation, size=(120, 40))


@pytest.mark.parametrize(("keys", "ready"), OPEN[1:5], ids=NAMES[1:5])
def test_a_protected_host_wants_its_name_typed(keys: tuple[str, ...], ready: str) -> None:
    async def story(d: Driver) -> None:
        await d.press(*keys)
        await d.shows("type gpu-a2 to confirm: it is protected")
        if keys[-1] != "down":
            await d.until(lambda: d.app.focused and d.app.focused.id == "dialog-name", "the name can be typed")
        while d.app.focused is not None and d.app.focused.id != "no":
            await d.press("tab")
        await d.press("y")
        assert not d.simulation.changes()
        assert d.app.focused is not None
        assert d.app.focused.id == "dialog-name"
        await d.type("gpu-a")
        await d.press("enter", "y")
        assert not d.simulation.changes()
        assert "y needs the name" in d.text
        await d.type("2")
        await d.shows(ready)
        assert not d.simulation.changes(), "the name alone confirms nothing"
        await d.press("y")
        await d.until(d.simulation.changes, "the change is asked for")

    drive(story, fleet=fleet_file(HOSTS, protected=("gpu-a2",)), size=(120, 40))


def test_rolling_back_is_one_key_to_the_revision_before_and_the_plan_is_the_difference() -> None:
    async def story(d: Driver) -> None:
        await d.press("j", "j", "R")
        await d.shows("embed:1.2 → embed:1.1")
        assert "qd rollback embed --host gpu-a2" in d.text
        await d.shows("y roll back")
        await d.press("y")
        wish, _ = (await d.until(d.simulation.changes, "the rollback is asked for"))[0]
        assert wish.request == p.RollbackRequest()

    drive(story)


@pytest.mark.parametrize(
    "keys", [("shift+tab", "down", "down", "enter"), ("down", "down"), ("down", "down", "up", "down")]
)
def test_another_revision_can_be_chosen_to_roll_back_to(keys: tuple[str, ...]) -> None:
    async def story(d: Driver) -> None:
        await d.press("j", "j", "R")
        await d.shows("↑ ↓ choose another")
        await d.press(*keys)
        await d.shows("qd rollback embed --to 6 --host gpu-a2")
        await d.shows("y roll back")
        assert "↑ ↓  embed:1.2," in d.text
        await d.press("y")
        wish, _ = (await d.until(d.simulation.changes, "the rollback is asked for"))[0]
        assert wish.request == p.RollbackRequest(to=6)

    drive(story)


def test_deploy_offers_the_newest_version_of_the_model_first() -> None:
    async def story(d: Driver) -> None:
        await opened(d, ("j", "j", "D"), "Deploy embed:1.3 to gpu-a2")
        await d.press("tab", "down")
        await d.shows("Deploy embed:1.1 to gpu-a2")
        await d.shows("qd deploy embed:1.1 --host gpu-a2")

    drive(story)


def test_deploy_goes_to_all_hosts_that_are_named_and_says_what_is_missing_there() -> None:
    async def story(d: Driver) -> None:
        await opened(d, ("j", "j", "D"), "y deploy")
        await d.press("tab", "tab", "tab")
        await d.type(" gpu-b*")
        await d.shows("qd deploy embed:1.3 --host gpu-a2 --host gpu-b1")
        await d.shows("not on gpu-b1: push it there first")
        await d.press(*["backspace"] * 7)
        await d.type(" nowhere")
        await d.shows("no host matches 'nowhere'")

    drive(story, size=(120, 40))


def test_a_version_that_is_pushed_while_the_dialog_is_open_can_be_deployed() -> None:
    async def story(d: Driver) -> None:
        await d.press("j", "j", "D")
        await d.shows("y deploy")
        await d.press("shift+tab", "shift+tab", "shift+tab", "shift+tab", "shift+tab", "shift+tab")
        await d.press("ctrl+u", *"embed:1.4")
        await d.shows("not on gpu-a2: push it there first")
        asked = len(d.simulation.asked)
        pushed = version("embed:1.4", created_at=d.simulation.now())
        d.simulation.delta("gpu-a2", "version", pushed.id, pushed)
        await d.until(lambda: "not on gpu-a2" not in d.text, "the version is known")
        await d.until(lambda: len(d.simulation.asked) > asked, "the plan is asked anew")
        await d.press("down", "up")
        await d.shows("Deploy embed:1.4 to gpu-a2")

    drive(story)


def test_a_dialog_can_be_used_on_the_smallest_terminal() -> None:
    async def story(d: Driver) -> None:
        await opened(d, ("j", "j", "D"), "y deploy")
        for text in ("version", "hosts", "if it fails", "qd deploy embed:1.3 --host gpu-a2", "[ No ]"):
            assert text in d.text, text

    drive(story, size=(80, 24))


@pytest.mark.parametrize("keys", [("j", "j", "D"), ("j", "j", "R")], ids=["deploy", "roll back"])
def test_the_answers_are_in_sight_however_long_the_plan_is(keys: tuple[str, ...]) -> None:
    target = Target("gpu-a2", "embed")
    changes = tuple(p.Change(f"files.{number}.bin", "571081d60685 (4 GiB)", "9b3a0795c74a") for number in range(40))
    preview = p.Preview("embed", 8, "overlap", "both fit", None, changes, ("start", "switch"), (), "1.2 serves", "qd …")
    simulation = Simulation(previews={target: preview})

    async def story(d: Driver) -> None:
        await d.press(*keys)
        await d.shows("files.0.bin")
        assert "[ No ]" in d.text
        assert "--host gpu-a2" in d.text

    protected = fleet_file(HOSTS, protected=("gpu-a2",))
    drive(story, size=(80, 24), simulation=simulation, fleet=protected)


def test_figures_go_on_behind_a_dialog_and_a_lost_host_does_not_close_it() -> None:
    async def story(d: Driver) -> None:
        await opened(d, ("j", "j", "R"), "y roll back")
        d.simulation.lose("gpu-b1")
        await d.shows("○ 1 lost")
        assert d.app.screen.is_modal

    drive(story)


def test_a_change_that_fails_is_told_with_what_to_do() -> None:
    from collections.abc import AsyncGenerator

    from quarterdeck_console.errors import ChangeFailed

    class Failing(Simulation):
        async def change(self, wish: Wish, target: Target) -> AsyncGenerator[p.Operation, None]:
            async for each in super().change(wish, target):
                yield each
            raise ChangeFailed("golden request 2 of 5 differs", hint="see qd logs embed")

    async def story(d: Driver) -> None:
        await opened(d, ("j", "j", "R"), "y roll back")
        await d.press("y")
        await d.shows("rollback embed on gpu-a2: golden request 2 of 5 differs (see qd logs embed)")

    drive(story, simulation=Failing())


@pytest.mark.parametrize("keys", ["Ryyyy", "Rq", "RXy", "Rly", "Dyq", "Tyy", "Xdy"])
def test_what_is_typed_ahead_of_a_dialog_is_the_dialogs_and_confirms_nothing(keys: str) -> None:
    title = {"D": "Deploy", "R": "y roll back", "T": "y restart", "X": "y stop"}[keys[0]]

    async def story(d: Driver) -> None:
        await d.press("j", "j")
        await d.burst(keys)
        await d.shows(title)
        assert d.app.screen.is_modal
        assert d.app.screen_stack[:-1] == [d.view]
        assert not d.simulation.changes()

    drive(story)


def test_an_answer_counts_only_after_the_plan_has_been_in_sight() -> None:
    async def story(d: Driver) -> None:
        await d.press("j", "j", "R")
        await d.shows("read it first")
        await d.burst("yyyy")
        assert d.app.screen.is_modal
        assert not d.simulation.changes()
        await d.shows("y roll back")
        await d.press("y")
        await d.until(d.simulation.changes, "the change is asked for")

    drive(story)


def test_a_dialog_that_comes_to_light_again_has_to_be_read_again() -> None:
    async def story(d: Driver) -> None:
        await d.press("j", "j", "R")
        await d.shows("y roll back")
        dialog = d.app.screen
        await d.app.push_screen(Screen())
        d.app.pop_screen()
        await d.burst("y")
        await d.until(lambda: d.app.screen is dialog, "the dialog is on top again")
        await d.pilot.pause(0.05)
        assert d.app.screen is dialog
        assert not d.simulation.changes()
        await d.shows("y roll back")

    drive(story)


def test_a_protected_name_with_an_n_in_it_can_be_typed_at_once() -> None:
    async def story(d: Driver) -> None:
        await d.press("j", "j", "T")
        await d.shows("type gpu-n2 to confirm: it is protected")
        await d.until(lambda: d.app.focused and d.app.focused.id == "dialog-name", "the name can be typed")
        await d.type("gpu-n2")
        await d.shows("y restart")
        await d.press("y")
        await d.until(d.simulation.changes, "the change is asked for")

    simulation = Simulation()
    simulation.status = {name.replace("a2", "n2"): each for name, each in simulation.status.items()}
    drive(story, simulation=simulation, fleet=fleet_file(simulation.status, protected=("gpu-n2",)))


def test_stopping_and_removing_say_that_nobody_is_answered_any_more() -> None:
    async def story(d: Driver) -> None:
        await opened(d, ("j", "j", "X"), "y stop")
        assert "nothing serves it: requests are answered 503" in d.text
        assert "no pause" not in d.text
        await d.press("n")
        await opened(d, ("colon", *"rm embed", "enter"), "y remove")
        assert "nothing serves it any more" in d.text

    drive(story)


@pytest.mark.parametrize("change", [p.Change("version", None, "embed:1.3"), p.Change("stopped", "true", "false")])
def test_a_plan_that_begins_to_serve_promises_no_answers_before(change: p.Change) -> None:
    target = Target("gpu-a2", "embed")
    preview = replace(simulated_preview(Wish("rollback", (target,), p.RollbackRequest()), target), changes=(change,))

    async def story(d: Driver) -> None:
        await opened(d, ("j", "j", "R"), "y roll back")
        assert "nothing serves it now: requests are answered from when it is ready" in d.text
        assert "no pause" not in d.text

    drive(story, simulation=Simulation(previews={target: preview}))


def test_a_plan_is_as_wide_as_the_dialog_also_after_the_terminal_was_resized() -> None:
    async def story(d: Driver) -> None:
        await opened(d, ("j", "R"), "y roll back")
        wide = d.line_with("handover")
        assert "0123456789" in wide
        await d.pilot.resize_terminal(60, 24)
        await d.until(lambda: "│             a-" in d.text, "the rest of the line is below its beginning")

    why = "a-" * 15 + " " + "a-" * 8 + "0123456789"
    target = Target("gpu-a1", "reranker")
    preview = replace(simulated_preview(Wish("rollback", (target,), p.RollbackRequest()), target), why=why)
    drive(story, simulation=Simulation(previews={target: preview}), size=(120, 32))


def test_rolling_back_says_which_revision_is_the_one_before() -> None:
    target = Target("gpu-a2", "embed")
    preview = simulated_preview(Wish("rollback", (target,), p.RollbackRequest()), target)

    async def story(d: Driver) -> None:
        await opened(d, ("j", "j", "R"), "y roll back")
        await d.until(lambda: d.line_with("the one before"), "it is said")
        await d.shows("7: embed:1.1, ")

    drive(story, simulation=Simulation(previews={target: replace(preview, command="qd rollback embed --to 7")}))
