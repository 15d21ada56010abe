"""The pure parts: marks, filters, commands, the palette's hits, the user's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from quarterdeck_agent.protocol import ChangeRequest, DeployRequest, RollbackRequest, ScaleRequest
from quarterdeck_console import preferences
from quarterdeck_console.errors import Usage
from quarterdeck_console.preferences import Preferences
from quarterdeck_console.state import FleetState, delta, deltas, snapshot
from quarterdeck_console.tui import commands, marks
from quarterdeck_console.tui.filtering import matcher
from quarterdeck_console.tui.history import POINTS, History
from quarterdeck_console.tui.messages import Target, Wish
from quarterdeck_console.tui.palette import hits
from quarterdeck_console.tui.widgets.table import fit
from tests.console.simulation import NOW, ago, deployment, sketch


@pytest.mark.parametrize(
    ("value", "drawn"),
    [(None, "····"), (0.0, "░░░░"), (0.01, "▏░░░"), (0.5, "██░░"), (1.0, "████"), (7.0, "████"), (-1.0, "░░░░")],
)
def test_a_bar_is_as_wide_as_it_should_be_whatever_the_figure(value: float | None, drawn: str) -> None:
    assert marks.bar(value, 4) == drawn


def test_a_sparkline_is_set_to_the_right_and_has_gaps() -> None:
    assert marks.sparkline([0.0, None, 1.0], 5) == "  ▁ █"
    assert marks.sparkline([1.0, 2.0, 4.0], 3, top=None) == "▃▅█"
    assert marks.sparkline([], 3) == "   "
    assert marks.sparkline([0.0], 1, top=None) == "▁"


@pytest.mark.parametrize(
    ("parts", "said"),
    [({"seconds": 5}, "5s"), ({"minutes": 5, "seconds": 7}, "5m07"), ({"hours": 6, "minutes": 2}, "6h02"),
     ({"days": 3, "hours": 4}, "3d04h"), ({"days": 11}, "11d"), ({"seconds": -5}, "0s")],
)  # fmt: skip
def test_ages_take_six_columns_at_most(parts: dict[str, float], said: str) -> None:
    assert marks.since(ago(**parts), NOW) == said
    assert len(said) <= 6


@pytest.mark.parametrize(
    ("typed", "text", "wanted"),
    [("", "x", True), ("A b", "b a", True), ("a b", "a", False), ("!a", "b", True), ("!a", "a", False),
     ("~lch", "llama-chat", True), ("~hcl", "llama-chat", False), ("!", "x", True), ("!~lch", "llama-chat", False),
     ("[/x]", "a[/x]b", True)],
)  # fmt: skip
def test_a_filter_is_plain_inverse_or_fuzzy(typed: str, text: str, wanted: bool) -> None:
    assert matcher(typed)(text) is wanted


@pytest.mark.parametrize("text", ["", "abc", "abcdefgh", "日本語日本語", "a日本", "x\x1b[2J\n", "é"])
def test_a_cell_is_exactly_as_wide_as_its_column(text: str) -> None:
    from rich.cells import cell_len

    for right in (False, True):
        made = fit(text, 5, right)
        assert cell_len(made) == 5
        assert made.isprintable()


HERE = (Target("a", "embed"),)


@pytest.mark.parametrize(
    ("wish", "command"),
    [
        (Wish("deploy", HERE, DeployRequest("embed:2")), "qd deploy embed:2 --host a"),
        (
            Wish("deploy", HERE, DeployRequest("rank:2", replicas=2, handover="hold", why="it's faster")),
            "qd deploy rank:2 --as embed --replicas 2 --handover hold --why 'it'\"'\"'s faster' --host a",
        ),
        (Wish("rollback", HERE, RollbackRequest(to=4)), "qd rollback embed --to 4 --host a"),
        (Wish("scale", (*HERE, Target("b", "embed")), ScaleRequest(3)), "qd scale embed 3 --host a --host b"),
        (Wish("remove", HERE, ChangeRequest()), "qd rm embed --host a"),
    ],
)
def test_every_change_has_its_command(wish: Wish, command: str) -> None:
    assert commands.of_wish(wish) == (command,)


def test_every_command_that_is_shown_is_one_that_qd_takes() -> None:
    import shlex

    from quarterdeck_console.cli.main import cli

    wishes = (
        Wish("deploy", HERE, DeployRequest("rank:2", replicas=2, handover="hold", why="x")),
        Wish("rollback", HERE, RollbackRequest(to=4)),
        Wish("scale", HERE, ScaleRequest(3)),
        Wish("restart", HERE, ChangeRequest()),
        Wish("stop", HERE, ChangeRequest()),
        Wish("remove", HERE, ChangeRequest()),
    )
    for wish in wishes:
        for line in commands.of_wish(wish):
            _, verb, *rest = shlex.split(line)
            context = cli.make_context("qd", [verb, *rest])
            found = cli.get_command(context, verb)
            assert found is not None, verb
            found.make_context(verb, list(rest), parent=context)


def fleet() -> FleetState:
    state = FleetState.of(tuple(sketch()))
    for host, status in sketch().items():
        state = snapshot(state, host, status, NOW)
    return state


@pytest.mark.parametrize(
    ("typed", "first"),
    [("scale", "scale"), ("roll", "rollback"), ("gpus", "gpus"), ("gpu-a1", "gpu-a1"),
     ("deploy emb", "deploy embed:1.3"),
     ("logs vad", "logs vad@gpu-b1"), ("ops", "operations"), ("q", "quit")],
)  # fmt: skip
def test_the_likeliest_meaning_of_what_is_typed_comes_first(typed: str, first: str) -> None:
    assert hits(typed, fleet(), (), read_only=False)[0].title == first


def test_many_facts_at_once_are_the_same_as_one_after_another() -> None:
    from quarterdeck_agent.protocol import Delta

    status = sketch()["gpu-a2"]
    changes = [
        Delta("gpu", status.gpus[0].uuid, status.gpus[1]),
        Delta("deployment", "new", deployment("new", "new:1", 1)),
        Delta("traffic", "embed/8", None),
        Delta("traffic", "embed/9", status.traffic[0]),
        Delta("gauges", "", status.gauges),
        Delta("deployment", "embed", None),
        Delta("gpu", "GPU-other", status.gpus[2]),
    ]
    one = fleet()
    for change in changes:
        one = delta(one, "gpu-a2", change, NOW)
    assert deltas(fleet(), "gpu-a2", changes, NOW) == one


def test_history_is_bounded_and_forgets_what_is_gone() -> None:
    history = History()
    for value in range(POINTS + 10):
        history.add("a", "gpu", "x", float(value))
    assert len(history.last("a", "gpu", "x")) == POINTS
    assert history.last("a", "gpu", "x", 2) == (68.0, 69.0)
    history.keep("a", [("cpu", "")])
    assert history.last("a", "gpu", "x") == ()


# --- the user's settings ---------------------------------------------------------------------------------------------


def test_settings_are_read_from_the_file(tmp_path: Path) -> None:
    place = tmp_path / "console.toml"
    place.write_text('theme = "nord"\nrefresh = 5\nmouse = false\n[keys]\n"target.deploy" = "f5"\n')
    read = preferences.load({"QUARTERDECK_CONSOLE": str(place)})
    assert read == Preferences("nord", 5.0, False, {"target.deploy": "f5"})
    assert preferences.load({"QUARTERDECK_CONSOLE": str(tmp_path / "none")}) == Preferences()


@pytest.mark.parametrize(
    ("text", "said"),
    [("refresh = 0.1", "between"), ("refresh = true", "wrong type"), ("colour = 1", "unknown key"), ("x", "not valid"),
     ('keys = {"a" = "ctrl+b"}', "belongs to tmux"), ('keys = {"a" = "j,ctrl+q"}', "belongs to flow control"),
     ("keys = {a = 1}", "must name")],
)  # fmt: skip
def test_a_wrong_setting_is_told_with_its_key(text: str, said: str) -> None:
    with pytest.raises(Usage, match=said):
        preferences.parse(text, Path("console.toml"))


def test_a_fleet_file_says_what_the_fleet_is(tmp_path: Path) -> None:
    from quarterdeck_console import config

    place = tmp_path / "fleet.toml"
    place.write_text('name = "prod"\ncolour = "red"\nread_only = true\n[hosts.a]\nurl = "unix:///a.sock"\n')
    found = config.load({"QUARTERDECK_FLEET": str(place)}, 0)
    assert (found.name, found.colour, found.read_only) == ("prod", "red", True)
    config.add(place, config.Host("b", "unix:///b.sock"))
    assert config.load({"QUARTERDECK_FLEET": str(place)}, 0).name == "prod"
    place.write_text('colour = "mauve"\n')
    with pytest.raises(Usage, match="colour"):
        config.load({"QUARTERDECK_FLEET": str(place)}, 0)
