"""`J` and `y` in every view: what `--json` prints of what the cursor is on, and the same as YAML."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.console.fake_agent import GPU_STATUS, FakeAgent
from tests.console.running import qd
from tests.console.simulation import Simulation
from tests.console.tui.driving import Driver, drive

VIEWS: dict[str, tuple[tuple[str, ...], tuple[str, ...], int, str]] = {
    "a gpu": (("4",), ("gpus",), 0, """qd gpus --json --host box | jq '.items[] | select(.uuid == "GPU-0")'"""),
    "a mig instance": (
        ("4", "j", "j"), ("gpus",), 2,
        """qd gpus --json --host box | jq '.items[] | select(.uuid == "MIG-1-0")'""",
    ),
    "a lost gpu": (("4", "G"), ("gpus",), 3, """select(.uuid == "GPU-2")"""),
    "a version": (("2",), ("versions",), 0, """qd versions --json --host box | jq '.items[] | select(.id == """),
    "a change": (("3",), ("operations",), 0, """ --json --host box | jq '.items[]'"""),
}  # fmt: skip
"""The keys to a view, the list that its things are in, which of it the cursor is on, and what of the command shows."""


def shown(d: Driver) -> str:
    """The whole text that is on the screen."""
    from quarterdeck_console.tui.screens.text import TextScreen

    assert isinstance(d.view, TextScreen)
    return d.view._text


@pytest.mark.parametrize(("keys", "words", "place", "command"), VIEWS.values(), ids=VIEWS.keys())
def test_capital_j_shows_the_element_that_json_prints_and_y_its_yaml(
    keys: tuple[str, ...], words: tuple[str, ...], place: int, command: str, agent: FakeAgent, fleet: Path
) -> None:
    yaml = pytest.importorskip("yaml")
    agent.status = GPU_STATUS
    printed: dict[str, Any] = qd(fleet, *words, "--json").json["items"][place]
    ran: list[str] = []

    async def story(d: Driver) -> None:
        await d.press(*keys, "J")
        await d.until(d.view.crumbs, "the text is open")
        assert shown(d) == json.dumps(printed, ensure_ascii=False, indent=2)
        assert command in d.text.splitlines()[-1]
        ran.append(d.view.command())
        await d.press("escape", "y")
        await d.until(d.view.crumbs, "the YAML is open")
        assert yaml.safe_load(shown(d)) == json.loads(json.dumps(printed))
        assert not any(line.endswith((", ", "}]")) or ": [{" in line for line in shown(d).splitlines()), "line by line"

    drive(story, simulation=Simulation({"box": GPU_STATUS}), size=(200, 40))
    words_of, _, jq = ran[0].partition(" | jq ")
    told = qd(fleet, *shlex.split(words_of)[1:]).json["items"]
    wanted = shlex.split(jq)[0].partition("select(.")[2].rstrip(")")
    name, _, value = wanted.partition(" == ")
    assert [each for each in told if not name or each[name] == json.loads(value)] == [printed]


def test_of_several_gpus_each_is_shown_as_jq_takes_it_out_of_the_list() -> None:
    async def story(d: Driver) -> None:
        await d.press("4", "space", "j", "space", "J")
        await d.until(d.view.crumbs, "the text is open")
        decoder, text = json.JSONDecoder(), shown(d)
        first, end = decoder.raw_decode(text)
        second, _ = decoder.raw_decode(text, end + 1)
        assert [first["uuid"], second["uuid"]] == ["GPU-0", "MIG-1-0"]
        assert """select(.uuid == "GPU-0" or .uuid == "MIG-1-0")""" in d.text

    drive(story, simulation=Simulation({"box": GPU_STATUS}), size=(200, 40))


@pytest.mark.parametrize(("place", "said"), [("4", "no GPU"), ("2", "no version"), ("3", "no change")])
def test_where_there_is_nothing_under_the_cursor_that_is_said(place: str, said: str) -> None:
    bare = replace(GPU_STATUS, gpus=(), gpu_facts=(), gpu_uses=(), versions=(), operations=())

    async def story(d: Driver) -> None:
        await d.press(place, "J")
        await d.shows(f"there is {said} under the cursor")

    drive(story, simulation=Simulation({"box": bare}))
