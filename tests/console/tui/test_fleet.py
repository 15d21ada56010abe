"""The home screen: what one glance tells, at every size, also of hosts that are lost and come back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quarterdeck_agent import protocol as p
from quarterdeck_console.preferences import Preferences
from tests.console.simulation import REFUSED, Simulation, deployment, host_status, large
from tests.console.tui.driving import Driver, drive


def test_every_deployment_of_every_host_is_in_one_table() -> None:
    async def story(d: Driver) -> None:
        for host, name in (("gpu-a1", "llama-chat"), ("gpu-a2", "embed"), ("gpu-b1", "vad"), ("cpu-c1", "digits")):
            assert any(host in line and name in line for line in d.text.splitlines()), d.text
        assert "4 hosts · 7 GPUs · 7 deployments" in d.text

    drive(story)


def test_states_are_told_by_symbol_and_word() -> None:
    async def story(d: Driver) -> None:
        assert "● serving" in d.line_with("llama-chat")
        assert "◐ 2.1: hold (freeing GPU 2)" in d.line_with(" reranker ")
        assert "✖ refused: golden request 2 of 5 differs" in d.line_with(" embed ")
        assert "▲ degraded: 1 of 2 replicas ready" in d.line_with(" whisper ")
        assert "○ stopped" in d.line_with(" digits ")
        assert "40 held" in d.line_with(" reranker ")
        assert "▲ 1 degraded  ✖ 1 refused  ◐ 1 changing" in d.text

    drive(story, size=(170, 40))


def down(name: str) -> p.DeploymentStatus:
    """A deployment that nobody is answered by."""
    exited = replace(REFUSED, reason=p.FailureReason.EXITED)
    return deployment(
        name, f"{name}:1", 1, state=p.DeploymentState.FAILED, live_revision=None, replicas_ready=0, replicas=(),
        summary="the last deploy failed: it exited with code 1", failure=exited,
    )  # fmt: skip


def test_what_is_down_is_told_apart_from_what_serves_although_its_last_deploy_failed() -> None:
    simulation = Simulation()
    status = simulation.status["gpu-b1"]
    late = deployment("slow", "slow:1", 1, failure=replace(REFUSED, reason=p.FailureReason.NEVER_READY, message="60 s"))
    simulation.status["gpu-b1"] = replace(status, deployments=(*status.deployments, late, down("tts")))

    async def story(d: Driver) -> None:
        assert "✖ 1 failed  ▲ 1 degraded  ✖ 2 refused  ◐ 1 changing" in d.text
        assert "✖ failed: the last deploy failed" in d.line_with(" tts ")
        assert "● serving; ✖ refused: never ready: 60 s" in d.line_with(" slow ")
        assert d.view.main is not None
        d.view.main.sort_by("state")
        found = [key[1] for key in d.view.main.order]
        assert found[:5] == ["tts", "whisper", "embed", "slow", "reranker"]
        await d.press("slash", *"refused")
        await d.until(lambda: d.view.main and len(d.view.main.order) == 2, "what is counted can be found by its word")

    drive(story, size=(170, 40), simulation=simulation)


def test_the_troubles_fit_beside_each_other_on_the_smallest_terminal() -> None:
    simulation = Simulation()
    status = simulation.status["gpu-a1"]
    simulation.status["gpu-a1"] = replace(status, deployments=(*status.deployments, down("tts")))

    async def story(d: Driver) -> None:
        d.simulation.lose("gpu-b1")
        await d.shows("✖ 1 failed  ○ 1 lost  ▲ 1 degraded  ✖ 1 refused  ◐ 1 ch")

    drive(story, size=(80, 24), simulation=simulation)


def test_gpus_are_bars_with_figures_and_a_dead_one_says_why() -> None:
    async def story(d: Driver) -> None:
        assert "███████░░░  71%  61/80G" in d.line_with("gpu-a1 ●")
        assert "⚠ Xid 79" in d.line_with("gpu-a2 ▲")

    drive(story)


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (120, 32), (160, 45), (200, 60)])
def test_what_matters_fits_at_every_size(size: tuple[int, int]) -> None:
    async def story(d: Driver) -> None:
        assert all(len(line) <= size[0] for line in d.text.splitlines())
        assert "✖ 1 refused" in d.text
        assert "STATE" in d.text
        row = d.line_with(" embed ")
        assert "gpu-a2" in row
        assert "✖ refused" in row
        assert "d describe" in d.text
        assert "/80G" in d.text

    drive(story, size=size)


def test_a_narrow_terminal_shows_the_busiest_gpu_of_a_host_and_its_number() -> None:
    async def story(d: Driver) -> None:
        assert "99%  79/80G #1 of 3" in d.line_with("gpu-a1 ●")

    drive(story, size=(80, 24))


def test_resizing_the_terminal_lays_everything_out_anew() -> None:
    async def story(d: Driver) -> None:
        assert "GPU 2" not in d.text
        await d.pilot.resize_terminal(160, 40)
        await d.until(lambda: "GPU 2" in d.text and "SINCE" in d.text, "more columns are shown")
        await d.pilot.resize_terminal(80, 24)
        await d.until(lambda: "SINCE" not in d.text, "fewer columns are shown")

    drive(story, size=(80, 24))


def test_a_lost_host_stays_with_its_last_values_and_their_age_and_comes_back() -> None:
    async def story(d: Driver) -> None:
        d.simulation.lose("gpu-b1", "connection refused")
        await d.shows("? unreachable; was ●")
        d.simulation.at = d.simulation.at.replace(minute=5, second=32)
        await d.shows("unreachable for 2m10, last values: connection refused")
        assert "58%" in d.line_with("gpu-b1 ○"), "its last values are still there"
        assert "○ 1 lost" in d.text
        assert "● serving" in d.line_with("llama-chat"), "nobody else is touched"
        d.simulation.snapshot("gpu-b1")
        await d.until(lambda: "unreachable" not in d.text, "the host is back")
        assert "gpu-b1 ●" in d.text

    drive(story)


def test_a_host_that_never_answered_has_a_row_that_says_so() -> None:
    from tests.console.simulation import fleet_file

    async def story(d: Driver) -> None:
        assert "connecting" in d.line_with("gpu-z9")
        d.simulation.lose("gpu-z9", "no such socket")
        await d.shows("? unreachable: no such socket")

    drive(story, fleet=fleet_file(("gpu-a1", "gpu-a2", "gpu-b1", "cpu-c1", "gpu-z9")))


def test_the_first_frame_needs_no_host() -> None:
    async def story(d: Driver) -> None:
        assert "Quarterdeck" in d.text
        assert "prod" in d.text

    drive(story, ready=False)


def test_news_that_a_person_waits_for_do_not_wait_for_the_refresh() -> None:
    async def story(d: Driver) -> None:
        changed = replace(deployment("llama-chat", "llama-chat:8b-5", 18), since=d.simulation.at)
        d.simulation.delta("gpu-a1", "deployment", "llama-chat", changed)
        await d.until(lambda: " 8b-5 " in d.text, "the new version is shown", seconds=20)

    drive(story, preferences=Preferences(refresh=60.0))


def test_gauges_wait_for_the_refresh_and_make_a_sparkline() -> None:
    async def story(d: Driver) -> None:
        for _ in range(4):
            d.simulation.tick()
        await d.until(lambda: "▂▂" in d.line_with("gpu-a1 ●") or "▃▃" in d.line_with("gpu-a1 ●"), "points are drawn")

    drive(story)


def test_the_cursor_keeps_its_row_when_rows_come_and_go() -> None:
    async def story(d: Driver) -> None:
        await d.press("j", "j")
        assert d.view.targets()[0].name == "embed"
        d.simulation.delta("gpu-a1", "deployment", "llama-chat", None)
        d.simulation.delta("gpu-a1", "deployment", "aaa", deployment("aaa", "aaa:1", 1))
        await d.until(lambda: "llama-chat" not in d.text.split("STATE")[1], "the row is gone")
        assert d.view.targets()[0].name == "embed"
        d.simulation.delta("gpu-a2", "deployment", "embed", None)
        await d.until(lambda: d.view.targets()[0].name != "embed", "the cursor is on what took its place")
        assert d.view.targets()[0].name == "whisper"

    drive(story)


def test_the_line_under_the_table_tells_in_full_what_the_row_has_no_room_for() -> None:
    async def story(d: Driver) -> None:
        await d.press("j", "j")
        await d.shows("embed on gpu-a2  ● serving; ✖ refused: golden request 2 of 5 differs")

    drive(story, size=(100, 24))


def test_the_newest_change_of_the_fleet_is_on_the_event_line() -> None:
    async def story(d: Driver) -> None:
        assert "ci  deploy reranker on gpu-a1" in d.text
        told = p.Operation(
            "op-x", "scale", "vad", "bo", d.simulation.at, p.OperationState.FAILED, detail="no room on any GPU"
        )
        d.simulation.delta("gpu-b1", "operation", "op-x", told)
        await d.shows("bo  scale vad on gpu-b1   ✖ no room on any GPU")

    drive(story)


def test_hundreds_of_hosts_are_a_table_like_any_other() -> None:
    async def story(d: Driver) -> None:
        assert "300 hosts" in d.text
        await d.press("G")
        assert d.view.targets()[0] == ("gpu-0299", "model-3")
        await d.press("g")
        assert d.view.targets()[0] == ("gpu-0000", "model-0")

    drive(story, simulation=Simulation(large(300, 4, 4)))


def test_a_host_without_deployments_is_on_the_strip() -> None:
    async def story(d: Driver) -> None:
        assert "fresh ●" in d.text
        assert "no deployment yet" in d.text

    drive(story, simulation=Simulation({"fresh": host_status("fresh")}))
