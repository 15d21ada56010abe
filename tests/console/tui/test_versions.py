"""The versions screen: what lies where and what serves, comparing, pushing with progress, removing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from quarterdeck_agent import protocol as p
from quarterdeck_console.errors import Conflict, Usage
from quarterdeck_console.state import HostState
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.screens import versions_rows
from quarterdeck_console.tui.screens.versions import VersionsScreen
from quarterdeck_console.tui.widgets.pane import Pane
from tests.console.simulation import Simulation, deployment, fleet_file, host_status, version
from tests.console.tui.driving import Driver, drive

HOSTILE = "[/x] [@click=app.quit]quit[/] \x1b]52;c;aGk=\x07"


async def opened(d: Driver) -> VersionsScreen:
    await d.press("2")
    await d.shows("VERSION")
    await d.shows("embed:1.2")
    found = d.view
    assert isinstance(found, VersionsScreen)
    return found


async def go_to(d: Driver, label: str) -> None:
    """Put the cursor on a version."""
    found = d.view
    assert isinstance(found, VersionsScreen)
    key = next(key for key in found.table.lines if found.table.lines.of(key).cells[0].text == label)
    found.table.move_to(key)
    await d.until(lambda: pane(d).startswith(label), "the pane tells of it")


def pane(d: Driver) -> str:
    return d.view.query_one("#about", Pane).text


def wants(d: Driver, kind: str) -> list[object]:
    return [what for asked, what in d.simulation.asked if asked == kind]


# --- the matrix ------------------------------------------------------------------------------------------------------


def test_each_version_tells_on_which_host_it_lies_and_what_serves() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        header = next(line for line in d.text.splitlines() if "VERSION" in line)
        served, only, both = d.line_with("embed:1.2"), d.line_with("embed:1.3"), d.line_with("vad:6.2.3")
        assert served.index("● serving") == header.index("gpu-a2")
        assert only.index("· pushed") == header.index("gpu-a2")
        assert (both.index("● serving"), both.rindex("● serving")) == (header.index("gpu-b1"), header.index("cpu-c1"))
        assert "2/4" in both and "1/4" in only
        assert "◐ deploying" in d.line_with("reranker:2.1") and "◐ holding" in d.line_with("reranker:2.0")
        assert "○ stopped" in d.line_with("digits:1")

    drive(story, size=(160, 40))


def test_at_80_by_24_the_first_hosts_are_there_and_the_others_come_with_the_arrow() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert "gpu-a1" in d.text and "cpu-c1" not in d.text
        for _ in range(5):
            await d.press("right")
        assert "cpu-c1" in d.text and "embed:1.2" in d.text

    drive(story, size=(80, 24))


def test_a_deployment_of_another_name_is_named() -> None:
    simulation = Simulation({"a": host_status("a", versions=(version("embed:1.2"),), deployments=(
        deployment("search", "embed:1.2", 1),))})  # fmt: skip

    async def story(d: Driver) -> None:
        await opened(d)
        assert "● search" in d.line_with("embed:1.2")

    drive(story, simulation=simulation)


def test_one_label_for_other_bytes_on_another_host_is_told() -> None:
    other = version("embed:1.2", id="f" * 64)
    simulation = Simulation({
        "a": host_status("a", versions=(version("embed:1.2"),)), "b": host_status("b", versions=(other,)),
    })  # fmt: skip

    async def story(d: Driver) -> None:
        await opened(d)
        assert sum("▲ embed:1.2" in line for line in d.text.splitlines()) == 2
        assert "ffffffffffff" in d.text

    drive(story, simulation=simulation, size=(120, 30))


def test_a_version_that_is_kept_warm_is_told_where_its_revision_is_known() -> None:
    old, new = version("embed:1"), version("embed:2")
    status = deployment("embed", "embed:2", 2, version=new.id, warm_revision=1)
    revision = p.Revision("embed", 1, p.Spec(old.id, old.label), status.since, "ana", "op")
    host = HostState("a", status=host_status("a", deployments=(status,)))
    assert versions_rows.on_host(host, new).text == "● serving"
    assert versions_rows.on_host(host, old).text == "· pushed"
    assert versions_rows.on_host(replace(host, revisions={"embed/1": revision}), old).text == "◌ warm"


def test_a_new_version_appears_without_moving_the_cursor() -> None:
    async def story(d: Driver) -> None:
        view = await opened(d)
        await go_to(d, "embed:1.2")
        newest = version("embed:1.4")
        d.simulation.delta("gpu-a2", "version", newest.id, newest)
        await d.shows("embed:1.4")
        assert view.chosen is not None and view.chosen.label == "embed:1.2"

    drive(story)


# --- comparing -------------------------------------------------------------------------------------------------------


def test_two_selected_versions_are_compared_by_configuration_and_files() -> None:
    simulation = Simulation()
    status = simulation.status["gpu-a2"]
    changed = tuple(
        replace(each, config={"name": "embed", "settings": {"batch": 8}}) if each.label == "embed:1.3" else each
        for each in status.versions
    )
    simulation.status["gpu-a2"] = replace(status, versions=changed)

    async def story(d: Driver) -> None:
        await opened(d)
        await go_to(d, "embed:1.3")
        await d.press("space", "space", "x")
        told = pane(d)
        assert told.startswith("embed:1.2 → embed:1.3")
        assert "+ settings.batch" in told and "file model.pt" in told
        await d.press("escape")
        assert "→" not in pane(d).splitlines()[0]

    drive(story, simulation=simulation)


def test_x_alone_compares_with_the_models_version_before() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await go_to(d, "embed:1.2")
        await d.press("x")
        assert pane(d).startswith("embed:1.1 → embed:1.2")
        await d.press("x")
        await go_to(d, "vad:6.2.3")
        await d.press("x")
        await d.shows("select two versions")

    drive(story)


# --- pushing ---------------------------------------------------------------------------------------------------------


def came(host: str | None, stage: str, done: int = 0, **more: object) -> m.PushCame:
    return m.PushCame(host, stage, done, 100 << 20, "embed:1.4", **more)  # type: ignore[arg-type] # kept short


def test_p_pushes_a_folder_and_shows_how_far_it_is_on_each_host() -> None:
    simulation = Simulation()
    simulation.push_steps = [
        came(None, "hashing", 50 << 20), came("gpu-a1", "sending", 25 << 20), came("gpu-a2", "sending", 10 << 20),
        came("gpu-a2", "failed", error=Conflict("other bytes have this label", hint="give it another version")),
        came("gpu-a1", "registered", 100 << 20, version=version("embed:1.4")),
    ]  # fmt: skip

    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("P")
        await d.shows("Push a bundle")
        assert "y needs more" in d.text
        await d.type("/models/embed 2")
        await d.press("enter")
        await d.type("gpu-a*")
        await d.shows("qd push '/models/embed 2' --host gpu-a1 --host gpu-a2")
        await d.press("enter", "enter")
        await d.until(lambda: d.app.screen.query_one("#no").has_focus, "No has the focus")
        await d.press("y")
        await d.shows("✔ embed:1.4 is there")
        assert wants(d, "push") == [(("gpu-a1", "gpu-a2"), "/models/embed 2", False)]
        assert "other bytes have this label (give it another version)" in d.text
        await d.press("c")
        await d.until(lambda: "is there" not in d.text, "the push is forgotten")

    drive(story, simulation=simulation)


def test_a_push_with_its_folder_in_the_command_waits_for_what_is_missing_only() -> None:
    one = {"gpu-a1": Simulation().status["gpu-a1"]}

    async def known(d: Driver) -> None:
        await d.press("colon", *"push /x", "enter")
        await d.shows("y push")
        await d.press("y")
        await d.until(lambda: wants(d, "push") == [(("gpu-a1",), "/x", False)], "it is pushed")

    async def missing(d: Driver) -> None:
        await d.press("colon", *"push /x", "enter")
        await d.shows("to which hosts?")
        await d.type("gpu-a1")
        await d.shows("qd push /x --host gpu-a1")

    drive(known, simulation=Simulation(one))
    drive(missing)


def test_c_ends_a_push_and_so_does_the_end_of_the_console() -> None:
    simulation = Simulation(push_hangs=True, push_steps=[came("gpu-a1", "sending", 25 << 20)])

    async def push(d: Driver) -> None:
        await d.press("P")
        await d.type("/models/embed")
        await d.press("enter", *"gpu-a1", "enter", "enter")
        await d.shows("y push")
        await d.press("y")
        await d.shows("sending")

    async def story(d: Driver) -> None:
        await opened(d)
        await push(d)
        await d.press("c")
        await d.until(lambda: ("push ended", ("gpu-a1",)) in simulation.asked, "the push is ended")
        await d.until(lambda: "sending" not in d.text, "nothing is sent any more")
        simulation.asked.clear()
        await push(d)

    drive(story, simulation=simulation)
    assert ("push ended", ("gpu-a1",)) in simulation.asked


def test_progress_is_a_bar_with_figures() -> None:
    told = versions_rows.pushes({"a": came("a", "sending", 25 << 20), "b": came("b", "retrying", detail="cut")}).plain
    first, second = told.splitlines()
    assert "██████░░" in first and " 25%" in first and "25.0 MiB of 100 MiB" in first
    assert "retrying" in second and "cut" in second


def test_a_folder_that_is_no_bundle_says_what_is_wrong() -> None:
    class Wrong(Simulation):
        async def push(
            self, hosts: tuple[str, ...], folder: str, allow_pickle: bool
        ) -> AsyncGenerator[m.PushCame, None]:
            for wrong in ("there is no folder /nope",):
                yield came(None, "hashing")
                raise Usage(wrong, hint="a bundle is a folder with model.toml")

    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("P")
        await d.type("/nope")
        await d.press("enter")
        await d.type("gpu-a1")
        await d.press("enter", "enter", "y")
        await d.shows("there is no folder /nope (a bundle is a folder with model.toml)")

    drive(story, simulation=Wrong())


@pytest.mark.parametrize("keys", [("escape",), ("enter", "enter", "enter", "enter"), ("tab", "tab", "tab", "n")])
def test_a_push_that_is_not_confirmed_sends_nothing(keys: tuple[str, ...]) -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("P")
        await d.type("/models/x")
        await d.press(*keys)
        await d.until(lambda: not d.app.screen.is_modal, "the dialog is gone")
        assert wants(d, "push") == []

    drive(story, fleet=fleet_file(["gpu-a2"]))


def test_a_protected_host_wants_its_name_before_a_push() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("P")
        await d.type("/models/x")
        await d.press("enter")
        await d.type("gpu-a2")
        await d.press("enter", "enter", "enter")
        await d.shows("it is protected")
        await d.press("escape")
        assert wants(d, "push") == []
        await d.press("P")
        await d.type("/models/x")
        await d.press("enter")
        await d.type("gpu-a2")
        await d.press("enter", "enter")
        await d.type("gpu-a2")
        await d.until(lambda: d.app.screen.query_one("#no").has_focus, "the name was right")
        await d.press("y")
        await d.until(lambda: wants(d, "push"), "it is pushed")

    drive(story, fleet=fleet_file(["gpu-a1", "gpu-a2"], protected=("gpu-a2",)))


def test_pickle_has_to_be_allowed_and_says_what_that_means() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("P")
        await d.type("/models/x")
        await d.press("enter")
        await d.type("gpu-a1")
        await d.press("enter", "down")
        await d.shows("loading a pickle runs its author's code")
        await d.shows("--allow-pickle")
        await d.press("enter", "y")
        await d.until(lambda: wants(d, "push") == [(("gpu-a1",), "/models/x", True)], "it is pushed")

    drive(story)


# --- removing, and going on ------------------------------------------------------------------------------------------


def test_x_removes_a_version_from_its_hosts_after_a_yes_only() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await go_to(d, "embed:1.1")
        await d.press("X")
        await d.shows("Remove embed:1.1 from gpu-a2")
        await d.press("enter")
        await d.until(lambda: not d.app.screen.is_modal, "the dialog is gone")
        assert wants(d, "remove version") == []
        await d.press("X")
        await d.shows("y remove")
        await d.press("y")
        await d.until(lambda: wants(d, "remove version"), "it is removed")
        assert wants(d, "remove version") == [("gpu-a2", version("embed:1.1").id)]
        await d.shows("removed embed:1.1 from gpu-a2")

    drive(story)


def test_a_version_that_is_needed_stays_and_the_host_says_why() -> None:
    simulation = Simulation()
    simulation.removal_errors["gpu-a2"] = Conflict("revision 8 needs it", hint="roll forward first")

    async def story(d: Driver) -> None:
        await opened(d)
        await go_to(d, "embed:1.2")
        await d.press("X")
        await d.shows("y remove")
        await d.press("y")
        await d.shows("embed:1.2 stays on gpu-a2: revision 8 needs it (roll forward first)")

    drive(story, simulation=simulation)


def test_read_only_neither_pushes_nor_removes() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        for key in ("P", "X", "D"):
            await d.press(key)
            assert not d.app.screen.is_modal
        assert "push" not in d.text.splitlines()[-1]
        d.view.post_message(m.WantRemoveVersion(d.view, "gpu-a2", "0", "embed:1.1"))
        await d.shows("this console is read-only")
        assert wants(d, "remove version") == []

    drive(story, read_only=True)


def test_capital_d_deploys_the_version_under_the_cursor() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await go_to(d, "embed:1.3")
        await d.press("D")
        await d.shows("Deploy embed:1.3")

    drive(story)


def test_l_opens_the_logs_of_what_serves_it() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await go_to(d, "embed:1.3")
        await d.press("l")
        await d.shows("nothing serves this version")
        await go_to(d, "vad:6.2.3")
        await d.press("l")
        await d.until(lambda: wants(d, "logs"), "logs are asked for")
        wish = wants(d, "logs")[0]
        assert isinstance(wish, m.LogWish)
        assert wish.targets == (m.Target("gpu-b1", "vad"), m.Target("cpu-c1", "vad"))

    drive(story)


def test_filter_and_zoom() -> None:
    async def story(d: Driver) -> None:
        view = await opened(d)
        await d.press("/")
        await d.type("rerank")
        await d.press("enter")
        assert len(view.table.order) == 2
        await d.press("enter")
        await d.until(lambda: "RUNTIME" not in d.text, "the table is hidden")
        await d.press("escape", "escape")
        await d.until(lambda: len(view.table.order) > 2, "the filter is gone")

    drive(story)


def test_hostile_labels_and_configurations_are_text() -> None:
    wicked = version(
        HOSTILE, name=HOSTILE, runtime=HOSTILE, by=HOSTILE, formats=(HOSTILE,), card=HOSTILE,
        config={HOSTILE: {HOSTILE: HOSTILE}, "metadata": {HOSTILE: [HOSTILE]}},
        files=(p.ManifestFile(HOSTILE, 1, "0" * 64),),
    )  # fmt: skip
    simulation = Simulation({"a": host_status("a", versions=(wicked, version("embed:1.2")))})
    simulation.push_steps = [m.PushCame("a", HOSTILE, 1, 2, HOSTILE, HOSTILE)]

    async def story(d: Driver) -> None:
        await opened(d)
        for keys in (("g",), ("enter",), ("escape",), ("space", "space", "x"), ("escape",), ("X",), ("escape",)):
            await d.press(*keys)
            assert "\x1b" not in d.text and "\x07" not in d.text
        assert d.app.is_running

    drive(story, simulation=simulation, size=(160, 50))
