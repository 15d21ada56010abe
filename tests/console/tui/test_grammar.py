"""The grammar: every key that works in every view, the palette, and keys of the user's own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import pytest
from textual import events

from quarterdeck_console.errors import Usage
from quarterdeck_console.preferences import Preferences
from quarterdeck_console.state import FleetState
from quarterdeck_console.tui.registry import binding_ids
from quarterdeck_console.tui.widgets.band import Band
from tests.console.simulation import fleet_file
from tests.console.tui.driving import Driver, drive, driven


def _is_at(d: Driver, place: str) -> bool:
    return d.view.place == place


def names(d: Driver) -> list[str]:
    """The deployments in the table, as shown."""
    assert d.view.main is not None
    return [key[1] for key in d.view.main.order]


@pytest.mark.parametrize("keys", [("down", "down", "up"), ("j", "j", "k"), ("G", "g", "j"), ("end", "home", "down")])
def test_arrows_and_vim_keys_move_the_cursor(keys: tuple[str, ...]) -> None:
    async def story(d: Driver) -> None:
        await d.press(*keys)
        assert d.view.targets()[0].name == "reranker"

    drive(story)


@pytest.mark.parametrize(
    ("typed", "left"),
    [
        ("embed", ["embed"]),
        ("!serving", ["reranker", "whisper", "digits"]),
        ("~rrk", ["reranker"]),
        ("gpu-b1", ["vad"]),
        ("refused", ["embed"]),
        ("VAD cpu", ["vad"]),
        ("nothing-like-it", []),
    ],
)
def test_slash_filters_plain_inverse_and_fuzzy(typed: str, left: list[str]) -> None:
    async def story(d: Driver) -> None:
        await d.press("slash")
        await d.type(typed)
        await d.until(lambda: names(d) == left, f"only {left} are left, not {names(d)}")
        await d.press("enter")
        assert f"/{typed} {len(left)} of 7" in d.text

    drive(story)


def test_a_filter_is_remembered_and_escape_takes_it_away() -> None:
    async def story(d: Driver) -> None:
        await d.press("slash", *"vad", "enter")
        assert names(d) == ["vad", "vad"]
        await d.press("2")
        await d.until(lambda: d.view.place == "versions", "another place is shown")
        await d.press("1")
        await d.until(lambda: d.view.place == "fleet", "home is shown again")
        assert names(d) == ["vad", "vad"]
        d.simulation.tick()
        await d.pilot.pause(0.2)
        assert names(d) == ["vad", "vad"]
        await d.press("escape")
        assert len(names(d)) == 7

    drive(story)


def test_s_sorts_by_the_next_column_and_capital_s_turns_it_round() -> None:
    async def story(d: Driver) -> None:
        usual = names(d)
        await d.press("s", "s")
        assert names(d) == sorted(usual)
        assert "DEPLOYMENT▲" in d.text
        await d.press("S")
        assert names(d) == sorted(usual, reverse=True)
        d.simulation.tick()
        await d.pilot.pause(0.2)
        assert names(d) == sorted(usual, reverse=True), "the order survives a refresh"

    drive(story)


def test_sorting_by_state_puts_the_worst_first() -> None:
    async def story(d: Driver) -> None:
        assert d.view.main is not None
        d.view.main.sort_by("state")
        assert names(d)[:3] == ["whisper", "embed", "reranker"]
        assert names(d)[-1] == "digits"

    drive(story)


def test_space_selects_and_verbs_are_about_the_selection() -> None:
    async def story(d: Driver) -> None:
        await d.press("space", "j", "space")
        assert [target.name for target in d.view.targets()] == ["llama-chat", "embed"]
        assert "2 selected" in d.text
        await d.press("T")
        await d.shows("Restart llama-chat on gpu-a1, embed on gpu-a2")
        await d.press("escape")
        await d.press("escape")
        assert [target.name for target in d.view.targets()] == ["whisper"]

    drive(story)


@pytest.mark.parametrize("key", ["d", "l", "y"])
def test_a_screen_that_opens_never_shows_an_empty_fleet(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts: list[int] = []
    shown = Band.show_fleet

    def show_fleet(self: Band, fleet: FleetState, refresh: float) -> None:
        hosts.append(len(fleet.hosts))
        shown(self, fleet, refresh)

    async def story(d: Driver) -> None:
        monkeypatch.setattr(Band, "show_fleet", show_fleet)
        await d.press(key)
        await d.until(lambda: d.view.crumbs() and len(hosts) > 1, "the screen is open")
        assert set(hosts) == {4}

    drive(story)


def test_a_click_goes_to_a_place_and_opens_the_help() -> None:
    async def story(d: Driver) -> None:
        for place in ("versions", "operations", "gpus", "fleet"):
            at = d.text.splitlines()[1].lower().index(place)
            await d.pilot.click(offset=(at + 1, 1))
            await d.pilot.pause()
            assert d.view.place == place
        await d.pilot.click(offset=(60, 1))
        await d.pilot.click(offset=(60, 0))
        assert d.view.place == "fleet"
        assert not d.app.screen.is_modal
        await d.pilot.click(offset=(d.text.splitlines()[0].index("? help"), 0))
        await d.until(lambda: d.app.screen.is_modal, "the help is open")

    drive(story, size=(160, 40))


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        ("d describe", "› embed on gpu-a2"),
        ("l logs", "› logs of embed on gpu-a2"),
        ("D deploy", "Deploy embed:1.3 to gpu-a2"),
        ("R roll back", "Roll back embed on gpu-a2"),
        (": command", "verb, deployment, host or place"),
        ("s sort", "HOST▲"),
    ],
)
def test_a_click_on_a_hint_does_what_its_key_does(hint: str, shown: str) -> None:
    async def story(d: Driver) -> None:
        await d.press("j", "j")
        for offset in (0, len(hint) - 1):
            at = d.text.splitlines()[-1].index(hint) + offset
            await d.pilot.click(offset=(at, 39))
            await d.shows(shown)
            await d.press("escape")
            await d.press(*["s"] * 12 if hint == "s sort" else [])

    drive(story, size=(160, 40))


def test_a_change_that_was_asked_for_by_a_click_is_done_by_its_y() -> None:
    async def story(d: Driver) -> None:
        await d.press("j", "j")
        await d.pilot.click(offset=(d.text.splitlines()[-1].index("R roll back") + 3, 39))
        await d.shows("y roll back")
        await d.press("y")
        await d.until(d.simulation.changes, "the change is asked for")

    drive(story, size=(160, 40))


def test_a_click_beside_the_hints_does_nothing() -> None:
    async def story(d: Driver) -> None:
        last = d.text.splitlines()[-1]
        for at in (0, last.index("  l logs"), last.index("qd describe") + 3, 159):
            await d.pilot.click(offset=(at, 39))
            await d.pilot.pause(0.05)
            assert len(d.app.screen_stack) == 1

    drive(story, size=(160, 40))


def test_the_mouse_moves_the_cursor_sorts_by_header_and_opens_with_a_second_click() -> None:
    async def story(d: Driver) -> None:
        await d.pilot.click("#deployments", offset=(14, 3))
        assert d.view.targets()[0].name == "embed"
        await d.pilot.click("#deployments", offset=(14, 0))
        assert names(d)[0] == "digits"
        await d.pilot.click("#deployments", offset=(14, 1), times=2)
        await d.shows("› digits on cpu-c1")

    drive(story)


def test_question_mark_lists_the_keys_of_the_view() -> None:
    async def story(d: Driver) -> None:
        await d.press("question_mark")
        for text in ("Roll back", "Filter", "Select", "Deploy", "/!text"):
            assert text in d.text, text
        await d.press("escape")
        assert "Roll back" not in d.text

    drive(story, size=(120, 50))


def test_number_keys_go_to_the_places_and_escape_goes_home() -> None:
    async def story(d: Driver) -> None:
        for key, place in (("2", "versions"), ("3", "operations"), ("4", "gpus"), ("1", "fleet")):
            await d.press(key)
            await d.until(partial(_is_at, d, place), f"{place} is shown")
        await d.press("3")
        await d.until(lambda: d.view.place == "operations", "operations are shown")
        await d.press("escape")
        await d.until(lambda: d.view.place == "fleet", "home is shown")

    drive(story)


def test_d_describes_and_escape_goes_back_to_the_same_row() -> None:
    async def story(d: Driver) -> None:
        await d.press("j", "j", "d")
        await d.shows("› embed on gpu-a2")
        await d.press("escape")
        assert d.view.place == "fleet"
        assert d.view.targets()[0].name == "embed"

    drive(story)


def test_l_opens_the_logs_of_all_that_are_selected() -> None:
    async def story(d: Driver) -> None:
        await d.press("space", "space", "l")
        await d.shows("› logs of llama-chat on gpu-a1, reranker on gpu-a1")

    drive(story)


def test_capital_j_shows_exactly_what_json_prints() -> None:
    from quarterdeck_console.cli import envelope

    async def story(d: Driver) -> None:
        await d.press("J")
        await d.shows('"kind": "DeploymentList"')
        status = d.simulation.status["gpu-a1"].deployments[0]
        told = envelope.items("DeploymentList", [envelope.plain(status, "gpu-a1")], [])
        from quarterdeck_console.tui.screens.text import TextScreen

        assert isinstance(d.view, TextScreen)
        assert d.view._text == envelope.encode(told, pretty=True)
        assert "qd status llama-chat --json --host gpu-a1" in d.text

    drive(story)


def test_y_shows_yaml_that_reads_back_as_the_same() -> None:
    from quarterdeck_console.tui.export import yaml as written

    yaml = pytest.importorskip("yaml")
    value = {
        "a": [1, None, True, {"b": "x: y", "c": []}],
        "on": "no",
        "d": {},
        "e": "line\nline",
        "f": "- x",
        "g": "ok",
    }
    assert yaml.safe_load(written({"v": value})) == {"v": value}

    async def story(d: Driver) -> None:
        await d.press("y")
        await d.shows("name: llama-chat")

    drive(story)


def test_plus_and_minus_change_the_refresh() -> None:
    async def story(d: Driver) -> None:
        await d.press("minus")
        assert d.app.session.refresh == 1.0
        await d.shows("refresh every 1 s")
        await d.press("plus")
        assert d.app.session.refresh == 0.5

    drive(story)


# --- keys that come all at once ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        (("j", "j", "enter", "R"), "Roll back embed on gpu-a2"),
        (("j", "j", "enter", "space", "j", "space", "x"), "DIFF 8 → 9"),
        (("l", "w"), "following  last 1,000 lines  wrap"),
        (("4", "j", "J"), '"gpu": "1"'),
        (("3", "z"), "op-swap"),
        (("j", "slash", "v", "a", "d"), "/vad 2 of 7"),
        (("slash", "v", "a", "d", "enter", "j", "d"), "› vad on cpu-c1"),
        (("slash", "v", "enter", "slash", "a", "enter", "y"), "yaml of vad"),
        (("l", "slash", "o", "enter", "w", "f", "x", "enter", "t"), "none  wrap  times"),
        (("enter", "slash", "x"), "/x 0 of 3"),
        (("2", "colon", *"gpus", "enter", "t"), "last 1h"),
    ],
)
def test_keys_that_come_in_one_go_reach_what_those_before_them_opened(keys: tuple[str, ...], shown: str) -> None:
    async def story(d: Driver) -> None:
        await d.burst(keys)
        await d.shows(shown)

    drive(story, size=(100, 40))


@pytest.mark.parametrize(
    "keys", [("d", "escape"), ("question_mark", "q"), ("enter", "q"), ("4", "escape"), ("l", "q"), ("J", "q")]
)
def test_a_key_that_leaves_is_over_before_the_next(keys: tuple[str, ...]) -> None:
    async def story(d: Driver) -> None:
        await d.burst([*keys, "j"])
        await d.until(lambda: d.view.place == "fleet" and d.view.targets()[0].name == "reranker", "home, one row down")
        assert d.app.is_running and len(d.app.screen_stack) == 1

    drive(story)


def test_a_key_from_a_terminal_that_tells_late_that_it_has_the_focus_is_the_lines() -> None:
    async def story(d: Driver) -> None:
        await d.press("slash", "v", "a")
        d.app.post_message(events.AppBlur())
        await d.until(lambda: d.app.focused is None, "nothing has the focus")
        await d.press("d")
        await d.shows("/vad 2 of 7")
        assert not d.view.crumbs()

    drive(story)


@pytest.mark.parametrize("more", ["y", "yyyy", "Jy", "lq"])
@pytest.mark.parametrize(
    ("typed", "title"),
    [("rollback embed", "Roll back embed"), ("stop embed", "Stop embed"), ("push /x", "Push a bundle")],
)
def test_keys_after_a_command_are_its_dialogs_and_confirm_nothing(typed: str, title: str, more: str) -> None:
    async def story(d: Driver) -> None:
        await d.burst(["colon", *(each.replace(" ", "space").replace("/", "slash") for each in typed), "enter", *more])
        await d.shows(title)
        assert d.app.screen_stack[:-1] == [d.view]
        assert not d.view.crumbs()
        assert not d.simulation.changes()
        assert not [kind for kind, _ in d.simulation.asked if kind == "push"]

    drive(story)


# --- the palette -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["colon", "ctrl+p"])
def test_colon_and_ctrl_p_open_the_same_line(key: str) -> None:
    async def story(d: Driver) -> None:
        await d.press(key)
        await d.type("operations")
        await d.press("enter")
        await d.until(lambda: d.view.place == "operations", "operations are shown")

    drive(story)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("describe embed", "› embed on gpu-a2"),
        ("logs whisper", "› logs of whisper on gpu-a2"),
        ("embed@gpu", "› embed on gpu-a2"),
        ("deploy embed:1.3", "Deploy embed:1.3 to gpu-a2"),
        ("rollback embed", "Roll back embed on gpu-a2"),
        ("scale embed 4", "qd scale embed 4 --host gpu-a2"),
        ("rm digits", "Remove digits on cpu-c1"),
        ("json embed", '"kind": "DeploymentList"'),
        ("push ", "Push a bundle"),
        ("push /models/embed", "bundle      /models/embed"),
        ("compare embed:1.2 embed:1.3", "embed:1.2 → embed:1.3"),
        ("compare", "select two versions with space"),
    ],
)
def test_the_palette_knows_verbs_with_what_they_are_about(typed: str, shown: str) -> None:
    async def story(d: Driver) -> None:
        await d.press("colon")
        await d.type(typed)
        await d.press("enter")
        await d.shows(shown)
        assert not d.simulation.changes()

    drive(story)


def test_a_host_in_the_palette_narrows_the_fleet_to_it() -> None:
    async def story(d: Driver) -> None:
        await d.press("4", "colon")
        await d.type("gpu-a2")
        await d.press("enter")
        await d.until(lambda: d.view.place == "fleet", "home is shown")
        await d.until(lambda: names(d) == ["embed", "whisper"], "only its deployments are shown")

    drive(story)


def test_escape_leaves_the_palette_and_quit_in_it_ends_the_console() -> None:
    async def run() -> None:
        async with driven() as d:
            await d.press("colon", "escape")
            assert d.view.place == "fleet"
            await d.press("colon", *"quit", "enter")
            await d.until(lambda: not d.app.is_running or d.app._exit, "the app ends")
            assert d.app.return_code == 0

    asyncio.run(run())


# --- keys that are changed, keys that are never taken ---------------------------------------------------------


def test_keys_can_be_changed_in_the_configuration() -> None:
    async def story(d: Driver) -> None:
        await d.press("D")
        assert "Deploy" not in d.text.split("STATE")[0]
        assert not d.app.screen.is_modal
        await d.press("f5")
        await d.shows("which version?")
        await d.press("escape", "question_mark")
        assert "f5" in d.text

    drive(story, preferences=replace(Preferences(), keys={"target.deploy": "f5"}), size=(120, 50))


def test_a_key_of_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(Usage, match=r"there is no key called 'target\.explode'") as told:
        drive(lambda d: None, preferences=Preferences(keys={"target.explode": "x"}))
    assert "target.deploy" in (told.value.hint or "")


def test_no_binding_takes_a_key_that_belongs_to_the_terminal_or_a_multiplexer() -> None:
    from quarterdeck_console.preferences import TAKEN
    from quarterdeck_console.tui import registry

    taken = {*TAKEN, "ctrl+j", "ctrl+k", "ctrl+h", "ctrl+l"}
    assert len(binding_ids()) > 40
    for kind in registry._all():
        for binding in registry._bindings(kind):
            assert binding.id, f"{kind.__name__}: {binding.key} has no id, so it cannot be changed"
            assert not taken & {key.strip() for key in binding.key.split(",")}, binding


def test_active_keys_of_the_home_screen_leave_those_alone_too() -> None:
    async def story(d: Driver) -> None:
        active = set(d.app.screen.active_bindings)
        assert not active & {"ctrl+b", "ctrl+a", "ctrl+s", "ctrl+q", "ctrl+z"}, active

    drive(story)


# --- read-only -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["D", "R", "C", "T", "X"])
def test_a_read_only_console_has_no_key_that_changes_anything(key: str) -> None:
    async def story(d: Driver) -> None:
        assert "read-only" in d.text
        assert "D deploy" not in d.text
        await d.press(key)
        assert not d.app.screen.is_modal
        await d.shows("this console is read-only: nothing is changed from here")
        await d.press("question_mark")
        assert "Roll back" not in d.text

    drive(story, read_only=True, size=(120, 50))


def test_a_key_of_the_users_own_says_too_that_a_read_only_console_changes_nothing() -> None:
    async def story(d: Driver) -> None:
        await d.press("D")
        await d.pilot.pause(0.05)
        assert "nothing is changed from here" not in d.text, "it is no key of a change any more"
        for key in ("f5", "ctrl+g"):
            d.view.tell("quiet")
            await d.press(key)
            await d.shows("this console is read-only: nothing is changed from here")

    keys = {"target.deploy": "f5,ctrl+g", "versions.push": "f6"}
    drive(story, read_only=True, preferences=replace(Preferences(), keys=keys), size=(120, 50))


@pytest.mark.parametrize("verb", ["deploy", "rollback", "scale", "restart", "stop", "rm"])
def test_a_read_only_console_has_no_verb_that_changes_anything(verb: str) -> None:
    async def story(d: Driver) -> None:
        await d.press("colon")
        await d.type(f"{verb} embed")
        await d.press("enter", "escape")
        assert not d.simulation.changes()
        assert not any(kind == "preview" for kind, _ in d.simulation.asked)

    drive(story, read_only=True)


def test_a_fleet_file_can_be_read_only_and_changes_are_refused_by_the_session_itself() -> None:
    from quarterdeck_agent.protocol import ChangeRequest
    from quarterdeck_console.tui.messages import AskStop, Target, Wish

    async def story(d: Driver) -> None:
        d.app.session.change(Wish("stop", (Target("gpu-a2", "embed"),), ChangeRequest()))
        await d.shows("this console is read-only: nothing was changed")
        d.app.post_message(AskStop((Target("gpu-a2", "embed"),)))
        await d.shows("nothing is changed from here")
        assert not d.simulation.changes()

    drive(story, fleet=fleet_file(("gpu-a1", "gpu-a2", "gpu-b1", "cpu-c1"), read_only=True))
