"""The deployment screen: revisions side by side, stories, diffs, cards, and what its keys ask for."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from quarterdeck_agent import protocol as p
from quarterdeck_console.errors import Unreachable
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.screens import card, deployment_rows, differences
from quarterdeck_console.tui.screens.deployment import DeploymentScreen
from quarterdeck_console.tui.widgets.pane import Pane
from tests.console.simulation import NOW, Simulation, ago, operation, replica, simulated_detail, version
from tests.console.tui.driving import Driver, drive

EMBED = m.Target("gpu-a2", "embed")


async def opened(d: Driver, target: m.Target = EMBED) -> DeploymentScreen:
    """The screen of a deployment, with its revisions."""
    d.app.post_message(m.OpenDeployment(target))
    await d.until(lambda: isinstance(d.view, DeploymentScreen) and d.view.main.lines, "the revisions have come")
    await d.shows("OUTCOME")
    found = d.view
    assert isinstance(found, DeploymentScreen)
    return found


def pane(d: Driver, id: str = "story") -> str:
    return d.view.query_one(f"#{id}", Pane).text


def row(d: Driver, number: int) -> str:
    """The line of a revision."""
    return next((line for line in d.text.splitlines() if re.match(rf"[▌ ] *{number} ", line)), "")


def revisions_of(target: m.Target, simulation: Simulation) -> p.DeploymentDetail:
    status = simulation.status[target.host]
    return simulated_detail(status, next(each for each in status.deployments if each.name == target.name))


# --- what it shows ---------------------------------------------------------------------------------------------------


def test_revisions_stand_side_by_side_with_what_became_of_them_and_how_they_answer() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        refused, live, warm, replaced = row(d, 9), row(d, 8), row(d, 7), row(d, 6)
        assert "✖ refused: golden request 2 of 5" in refused and "ana" in refused
        assert all(told in live for told in ("1.2", "91.7", "0.0%", "9 ms", "18 ms", "31 ms"))
        assert "rolls back at once" in warm and "8m00s" in warm
        assert "○ replaced, as 5 was" in replaced and "latency" in replaced

    drive(story, size=(180, 40))


def test_how_requests_are_split_between_revisions_is_told() -> None:
    simulation = Simulation()
    status = simulation.status["gpu-a2"]
    shares = {("embed", 8): 0.75, ("embed", 7): 0.25}
    split = tuple(replace(each, weight=shares.get((each.deployment, each.revision), 1.0)) for each in status.traffic)
    simulation.status["gpu-a2"] = replace(status, traffic=split)

    async def story(d: Driver) -> None:
        await opened(d)
        assert "WEIGHT   REQ/S" in d.text
        assert "75%    91.7" in row(d, 8) and "25%     0.0" in row(d, 7)
        assert "–       –" in row(d, 6)

    drive(story, size=(140, 40), simulation=simulation)


def test_at_80_by_24_what_matters_is_there() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert "✖ refused: golden request" in row(d, 9)
        assert "91.7" in row(d, 8)
        assert "embed-8-1" in d.text and "● ready" in d.line_with("embed-8-1")
        assert "FAILURE" in pane(d)
        assert all(len(line) <= 80 for line in d.text.splitlines())

    drive(story, size=(80, 24))


def test_the_story_of_a_refused_revision_tells_why_first() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        told = pane(d)
        for each in ("golden mismatch: golden request 2 of 5 differs", "step       golden requests",
                     "│ WARNING tokenizer.json differs", "DIFF 8 → 9", "embed:1.2 → embed:1.3"):  # fmt: skip
            assert each in told
        assert told.index("FAILURE") < told.index("STEPS") < told.index("DIFF")

    drive(story)


def test_a_crash_tells_its_exit_code_signal_and_gpus() -> None:
    simulation = Simulation()
    detail = revisions_of(EMBED, simulation)
    gpu = p.Gpu(0, "GPU-gpu-a2-0", "H100", memory_total=80 << 30, memory_used=79 << 30, utilisation=0.5)
    failure = p.Failure(ago(minutes=1), "start", p.FailureReason.OUT_OF_MEMORY, "killed", 137, 9, ("last",), (gpu,))
    newest = replace(detail.revisions[0], failure=failure)
    simulation.details[EMBED] = replace(detail, revisions=(newest, *detail.revisions[1:]))

    async def story(d: Driver) -> None:
        await opened(d)
        assert "out of memory: killed" in pane(d)
        assert "137, signal 9" in pane(d)
        assert "79.0 GiB / 80.0 GiB, 50% busy when it failed" in pane(d)

    drive(story, simulation=simulation)


def test_replicas_tell_their_gpu_its_memory_and_why_they_are_not_ready() -> None:
    simulation = Simulation()
    whisper = m.Target("gpu-a2", "whisper")
    status = simulation.status["gpu-a2"]
    crashed = replica(
        "whisper", 2, 2, state=p.ReplicaState.EXITED, reason="out of memory", exit_code=137, restarts=4,
        gpus=("GPU-gpu-a2-0",),
    )  # fmt: skip
    deployments = tuple(
        replace(each, replicas=(*each.replicas[:1], crashed)) if each.name == "whisper" else each
        for each in status.deployments
    )
    gauges = (
        p.ReplicaGauges("whisper-2-1", "whisper", 2, 1.25, 5 << 30, 8 << 30),
        p.ReplicaGauges("whisper-2-2", "whisper", 2, gpu_memory=4 << 30),
    )
    simulation.status["gpu-a2"] = replace(status, deployments=deployments, replica_gauges=gauges)

    async def story(d: Driver) -> None:
        await opened(d, whisper)
        line = d.line_with("whisper-2-2")
        for each in ("✖ exited", "4/80 GiB", " 4 ", "out of memory (exit code 137)"):
            assert each in line
        assert "1.25" in d.line_with("whisper-2-1") and "5.0 GiB" in d.line_with("whisper-2-1")

    drive(story, size=(160, 40), simulation=simulation)


def test_a_replica_on_a_sick_gpu_says_so() -> None:
    simulation = Simulation()
    status = simulation.status["gpu-a2"]
    lost = replica("whisper", 2, 1, gpus=("GPU-gpu-a2-2",))
    deployments = tuple(
        replace(each, replicas=(lost,)) if each.name == "whisper" else each for each in status.deployments
    )
    simulation.status["gpu-a2"] = replace(status, deployments=deployments)

    async def story(d: Driver) -> None:
        await opened(d, m.Target("gpu-a2", "whisper"))
        assert "⚠ GPU 2 Xid 79: lost since" in d.line_with("whisper-2-1")

    drive(story, size=(160, 40), simulation=simulation)


def test_each_revision_tells_the_most_gpu_memory_that_one_replica_held() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert "GPU MEM (peak)" in d.text
        assert d.line_with("● serving  ").endswith("3.8 GiB")
        assert d.line_with("✖ refused: ").endswith("3.9 GiB")

    drive(story, size=(120, 40))


def test_a_peak_that_grows_is_seen_at_once() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        live = simulated_detail(d.simulation.status["gpu-a2"], d.simulation.status["gpu-a2"].deployments[0]).revisions[
            1
        ]
        d.simulation.delta("gpu-a2", "revision", "embed/8", replace(live, gpu_memory_peak=7 << 30))
        await d.until(lambda: d.line_with("● serving  ").endswith("7.0 GiB"), "the new peak")

    drive(story, size=(120, 40))


def test_without_any_gpu_memory_there_is_no_column_for_it() -> None:
    simulation = Simulation()
    detail = simulated_detail(simulation.status["gpu-a2"], simulation.status["gpu-a2"].deployments[0])
    revisions = tuple(replace(each, gpu_memory_peak=None) for each in detail.revisions)
    simulation.details[EMBED] = replace(detail, revisions=revisions)

    async def story(d: Driver) -> None:
        await opened(d)
        assert "GPU MEM (peak)" not in d.text
        assert "MEMORY" in d.line_with("OUTCOME")

    drive(story, size=(140, 40), simulation=simulation)


def test_a_handover_shows_its_steps_as_they_go_on() -> None:
    simulation = Simulation()
    reranker = m.Target("gpu-a1", "reranker")
    detail = revisions_of(reranker, simulation)
    pending = replace(
        detail.revisions[0], number=6, outcome=p.RevisionOutcome.PENDING, operation="op-swap", served_at=None, steps=()
    )
    simulation.details[reranker] = replace(detail, revisions=(pending, *detail.revisions))

    async def story(d: Driver) -> None:
        await opened(d, reranker)
        assert "◐ freeing GPU 2  11.0 s" in row(d, 6)
        assert "✔ staged" in pane(d) and "◐ freeing GPU 2" in pane(d)
        simulation.at += timedelta(seconds=4)
        await d.until(lambda: "15.0 s" in pane(d), "the time goes on without any news")
        running = simulation.status["gpu-a1"].operations[0]
        steps = (
            *(replace(step, state="done") for step in running.steps),
            p.StepRecord("started", "running", simulation.at, 0.0, "loading weights 40%"),
        )
        simulation.delta("gpu-a1", "operation", "op-swap", replace(running, steps=steps))
        await d.until(lambda: "✔ freeing GPU 2" in pane(d) and "loading weights 40%" in pane(d), "the next step")

    drive(story, simulation=simulation)


def test_revisions_are_asked_for_again_only_when_something_about_them_changed() -> None:
    def asked(d: Driver) -> int:
        return sum(kind == "detail" for kind, _ in d.simulation.asked)

    async def story(d: Driver) -> None:
        await opened(d)
        d.simulation.tick()
        await d.until(lambda: d.view.fleet.hosts["gpu-a2"].seen_at == d.simulation.at, "the tick is heard")
        assert asked(d) == 1
        status = next(each for each in d.simulation.status["gpu-a2"].deployments if each.name == "embed")
        d.simulation.delta("gpu-a2", "deployment", "embed", replace(status, generation=10))
        await d.until(lambda: asked(d) == 2, "asked again")

    drive(story)


def test_the_cursor_stays_on_the_newest_revision_when_a_newer_comes() -> None:
    async def story(d: Driver) -> None:
        view = await opened(d)
        detail = revisions_of(EMBED, d.simulation)
        newest = replace(detail.revisions[0], number=10, outcome=p.RevisionOutcome.PENDING, failure=None)
        d.simulation.details[EMBED] = replace(detail, revisions=(newest, *detail.revisions))
        status = next(each for each in d.simulation.status["gpu-a2"].deployments if each.name == "embed")
        d.simulation.delta("gpu-a2", "deployment", "embed", replace(status, generation=10))
        await d.until(lambda: view.main.cursor == ("10",), "the cursor follows")
        await d.press("j")
        assert view.main.cursor == ("9",)

    drive(story)


def test_a_host_that_is_lost_keeps_everything_and_says_so() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        d.simulation.lose("gpu-a2")
        await d.shows("gpu-a2 is unreachable")
        assert "91.7" in d.text and "FAILURE of 9" in pane(d)
        d.simulation.snapshot("gpu-a2")
        await d.until(lambda: "unreachable" not in d.text, "the host is back")

    drive(story)


def test_a_question_without_an_answer_is_shown_and_put_again() -> None:
    class Deaf(Simulation):
        deaf = True

        async def detail(self, target: m.Target) -> p.DeploymentDetail:
            if self.deaf:
                self.asked.append(("detail", target))
                raise Unreachable("gpu-a2 did not answer within 10 s", host="gpu-a2")
            return await super().detail(target)

    simulation = Deaf()

    async def story(d: Driver) -> None:
        d.app.post_message(m.OpenDeployment(EMBED))
        await d.shows("did not answer within 10 s")
        simulation.deaf = False
        simulation.at += timedelta(seconds=6)
        simulation.tick()
        await d.shows("✖ refused")

    drive(story, simulation=simulation)


# --- its keys --------------------------------------------------------------------------------------------------------


def test_r_goes_back_to_the_revision_under_the_cursor() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("j", "j", "R")
        await d.shows("Roll back embed on gpu-a2")
        await d.shows("qd rollback embed --to 7 --host gpu-a2")
        await d.press("enter")
        await d.until(lambda: not d.app.screen.is_modal, "the dialog is gone")
        assert d.simulation.changes() == []

    drive(story)


def test_r_on_what_never_served_goes_back_to_the_one_before() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("R")
        await d.shows("Roll back embed on gpu-a2")
        assert "--to" not in d.text

    drive(story)


def test_the_command_line_teaches_the_rollback() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert "qd describe embed --host gpu-a2" in d.text
        await d.press("j", "j")
        assert "qd rollback embed --to 7 --host gpu-a2" in d.text

    drive(story, size=(200, 40))


def test_x_compares_two_selected_revisions_and_escape_closes_it() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("space", "j", "space", "x")
        assert "DIFF 7 → 9   (embed:1.1 → embed:1.3)" in pane(d)
        assert "file model.pt" in pane(d)
        await d.press("escape")
        assert "revision 6" in pane(d) or "revision 7" in pane(d)
        assert isinstance(d.view, DeploymentScreen)

    drive(story)


def test_x_without_a_selection_compares_with_the_live_one() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("x")
        assert "DIFF 8 → 9" in pane(d)
        await d.press("j")
        assert "revision 8" in pane(d)
        await d.press("x")
        await d.shows("put the cursor on one that is not live")

    drive(story)


def test_enter_gives_the_story_the_whole_room_and_escape_takes_it_back() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("enter")
        await d.until(lambda: "OUTCOME" not in d.text, "the tables are hidden")
        assert "LAST LINES of 9" in d.text
        await d.press("escape")
        await d.until(lambda: "OUTCOME" in d.text, "the tables are back")
        assert d.view.main is not None and d.view.main.has_focus

    drive(story, size=(80, 24))


def test_l_opens_the_logs_of_the_revision() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("l")
        await d.until(lambda: any(kind == "logs" for kind, _ in d.simulation.asked), "logs are asked for")
        wish = next(what for kind, what in d.simulation.asked if kind == "logs")
        assert (wish.targets, wish.revision) == ((EMBED,), 9)

    drive(story)


def rolled_back(of: int = 7) -> Simulation:
    """Revision 8 serves by the replicas of revision 7, which it rolled back to."""
    simulation = Simulation()
    detail = revisions_of(EMBED, simulation)
    back = tuple(replace(each, rollback_of=of) if each.number == 8 else each for each in detail.revisions)
    simulation.details[EMBED] = replace(detail, revisions=back)
    status = simulation.status[EMBED.host]
    simulation.status[EMBED.host] = replace(
        status,
        deployments=tuple(
            replace(each, replicas=tuple(replace(one, revision=7) for one in each.replicas))
            if each.name == EMBED.name
            else each
            for each in status.deployments
        ),
        replica_gauges=tuple(replace(each, revision=7) for each in status.replica_gauges),
    )
    return simulation


def test_memory_is_told_of_the_revision_that_serves_whichever_started_the_replicas() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert "4.0 GiB" in row(d, 8)
        assert "4.0 GiB" not in row(d, 7)

    drive(story, simulation=rolled_back(), size=(180, 40))


def test_revisions_that_lead_round_in_a_circle_are_followed_once() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert "● serving" in row(d, 8)

    drive(story, simulation=rolled_back(of=8), size=(180, 40))


def test_l_on_a_revision_that_was_rolled_back_to_opens_the_logs_of_the_replicas_that_serve_it() -> None:
    async def story(d: Driver) -> None:
        found = await opened(d)
        found.main.move_to(("8",))
        await d.until(lambda: found.chosen is not None and found.chosen.number == 8, "the live one is chosen")
        await d.press("l")
        await d.until(lambda: any(kind == "logs" for kind, _ in d.simulation.asked), "logs are asked for")
        wish = next(what for kind, what in d.simulation.asked if kind == "logs")
        assert wish.revision == 7

    drive(story, simulation=rolled_back())


@pytest.mark.parametrize(
    ("reason", "message", "said"),
    [
        (p.FailureReason.EXITED, "exited with code 41", "✖ exited with code 41"),
        (p.FailureReason.EXITED, "killed by signal 9", "✖ exited: killed by signal 9"),
        (p.FailureReason.NEVER_READY, "not ready after 60 s", "✖ never ready: not ready after 60 s"),
    ],
)
def test_a_failure_is_not_said_twice(reason: p.FailureReason, message: str, said: str) -> None:
    simulation = Simulation()
    detail = revisions_of(EMBED, simulation)
    failure = p.Failure(NOW, "start", reason, message, exit_code=41)
    newest = replace(detail.revisions[0], outcome=p.RevisionOutcome.FAILED, failure=failure)
    simulation.details[EMBED] = replace(detail, revisions=(newest, *detail.revisions[1:]))

    async def story(d: Driver) -> None:
        await opened(d)
        assert said in row(d, newest.number)
        await d.until(lambda: f"{said}\n" in pane(d) + "\n", "the record of it says the same")

    drive(story, simulation=simulation, size=(200, 50))


@pytest.mark.parametrize(("key", "shown"), [("y", "name: embed"), ("J", '"name": "embed"')])
def test_y_and_j_show_it_as_text(key: str, shown: str) -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        await d.press(key)
        await d.shows(shown)

    drive(story)


def test_read_only_asks_for_no_change() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        for key in ("D", "R", "C", "T", "X"):
            await d.press(key)
            assert not d.app.screen.is_modal
        assert "roll back" not in d.text.splitlines()[-1]

    drive(story, read_only=True)


# --- versions and cards ----------------------------------------------------------------------------------------------


def carded(text: str) -> Simulation:
    """`embed:1.3` with this card."""
    simulation = Simulation()
    status = simulation.status["gpu-a2"]
    config = {"name": "embed", "metadata": {"owner": "search team", "accuracy": 0.93}, "settings": {"batch": 8}}
    versions = tuple(
        replace(each, card=text, config=config) if each.label == "embed:1.3" else each for each in status.versions
    )
    simulation.status["gpu-a2"] = replace(status, versions=versions)
    return simulation


def test_v_shows_the_version_its_metadata_and_its_card() -> None:
    text = "# Embeddings\n\nGood at *search*, see [a paper](https://example.org/x).\n\n| a | b |\n|---|---|\n| 1 | 22 |"

    async def story(d: Driver) -> None:
        await opened(d)
        assert "MODEL CARD" not in d.text
        await d.press("v")
        told = pane(d, "about")
        for each in ("embed:1.3", "Embeddings", "Good at search, see a paper (https://example.org/x).", "a b",
                     "1 22", "owner", "search team", "batch", "model.pt"):  # fmt: skip
            assert each in told
        await d.shows("MODEL CARD")
        await d.press("escape")
        await d.until(lambda: "MODEL CARD" not in d.text, "the story is back")

    drive(story, simulation=carded(text))


def test_a_wide_terminal_shows_story_and_version_beside_each_other() -> None:
    async def story(d: Driver) -> None:
        await opened(d)
        assert "FAILURE of 9" in d.text and "MODEL CARD" in d.text

    drive(story, size=(200, 60), simulation=carded("# Card"))


HOSTILE = "[/x] [@click=app.quit]quit[/] [red]\x1b]52;c;aGk=\x07 \x1b[2J \u202e"


def test_a_hostile_card_is_text_and_nothing_in_it_does_anything() -> None:
    text = (
        f"# {HOSTILE}\n\n[click]({'javascript:alert(1)'}) ![p](file:///etc/passwd) <script>x</script> "
        f"<https://evil.example>\n\n```[/x]\n{HOSTILE}\n```\n\n> {HOSTILE}\n\n"
        f"| {HOSTILE} | [a](b) |\n|---|---|\n| 1 | 2 |\n"
    )

    async def story(d: Driver) -> None:
        await opened(d)
        await d.press("v")
        await d.shows("MODEL CARD")
        told = pane(d, "about")
        assert "[@click=app.quit]quit[/]" in told and "<script>" in told
        assert not any(each in told for each in ("\x1b", "\x07", "\u202e"))
        content = d.view.query_one("#about", Pane)._text.shown
        assert not any(
            "click" in str(span.style).lower() or getattr(span.style, "meta", None) for span in content.spans
        )
        for y in range(6, 28, 2):
            await d.pilot.click(offset=(10, y))
        assert isinstance(d.view, DeploymentScreen) and d.app.is_running

    drive(story, size=(120, 40), simulation=carded(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("- one\n- two\n  1. three\n  2. four\n", "• one\n• two\n  1. three\n  2. four"),
        ("> said\n> again", "▌ said again"),
        ("```python\nx = 1\n\ty\n```", "│ x = 1\n│     y"),
        ("a\n\nb", "a\n\nb"),
        ("a  \nb", "a\nb"),
        ("# T\ntext ~~old~~ **new** `code`", "T\n\ntext old new code"),
        ("![logo](x.png)", "[picture: logo (x.png)]"),
        ("***", "─" * 24),
        ("", ""),
    ],
)
def test_markdown_becomes_lines(text: str, shown: str) -> None:
    assert card.card(text).plain.rstrip() == shown


@pytest.mark.parametrize(
    "text", [">" * 5000 + "x", "[" * 5000, "*a " * 5000, "|" * 3000 + "\n" + "|-" * 1500, "- " * 900]
)
def test_a_card_made_to_be_slow_is_drawn_at_once(text: str) -> None:
    began = time.process_time()
    card.card(text * 20)
    assert time.process_time() - began < 3


def test_a_long_card_is_cut_and_says_so() -> None:
    assert card.card("word " * 20_000).plain.endswith("60000 more characters")


def test_hostile_names_reasons_and_last_lines_are_shown_as_text() -> None:
    simulation = Simulation()
    detail = revisions_of(EMBED, simulation)
    failure = p.Failure(
        NOW, HOSTILE, p.FailureReason("[/y]"), HOSTILE, None, None, (HOSTILE, "[@click=app.quit]x[/]"),
        (p.Gpu(0, "u", HOSTILE),), (p.Change(HOSTILE, HOSTILE, None),),
    )  # fmt: skip
    spec = p.Spec("0" * 64, HOSTILE, env={HOSTILE: HOSTILE})
    newest = replace(
        detail.revisions[0], failure=failure, by=HOSTILE, why=HOSTILE, spec=spec, handover=HOSTILE,
        handover_why=HOSTILE, image=HOSTILE, steps=(p.StepRecord(HOSTILE, "running", NOW, 1.0, HOSTILE),),
    )  # fmt: skip
    simulation.details[EMBED] = replace(detail, revisions=(newest, *detail.revisions[1:]))

    async def story(d: Driver) -> None:
        await opened(d)
        for key in ("enter", "escape", "v", "v", "x", "x"):
            await d.press(key)
            assert not any(each in d.text for each in ("\x1b", "\x07", "\u202e"))
        assert "[@click=app.quit]x[/]" in pane(d)
        assert d.app.is_running

    drive(story, simulation=simulation, size=(200, 60))


# --- the pure parts --------------------------------------------------------------------------------------------------


def test_a_clock_that_is_ahead_makes_no_negative_time() -> None:
    ahead = p.StepRecord("start", "running", NOW + timedelta(minutes=5), 2.0)
    assert deployment_rows.elapsed(ahead, NOW) == 2.0
    assert deployment_rows.elapsed(replace(ahead, state="done", elapsed=7.0), NOW) == 7.0


@pytest.mark.parametrize(
    ("rate", "errors", "share"), [(None, 1.0, None), (3.0, None, None), (0.0, 0.0, 0.0), (3.0, 1.0, 0.25)]
)
def test_the_share_of_errors(rate: float | None, errors: float | None, share: float | None) -> None:
    assert deployment_rows.error_share(p.Traffic("x", 1, 1.0, rate=rate, errors=errors)) == share


def files(**more: str) -> tuple[p.ManifestFile, ...]:
    return tuple(p.ManifestFile(path, 2048, digest * 64) for path, digest in more.items())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({}, {}, []),
        ({"config": {"settings": {"batch": 1}}}, {"config": {"settings": {"batch": 8}}},
         [("settings.batch", "1", "8")]),
        ({"config": {"env": {}}}, {"config": {"env": {"A": "b"}}}, [("env", "{}", None), ("env.A", None, "b")]),
        ({"runtime": "python"}, {"runtime": "vllm"}, [("runtime", "python", "vllm")]),
        ({"files": files(a="1", b="2")}, {"files": files(a="3", c="2")},
         [("file a", "2.0 KiB 11111111", "2.0 KiB 33333333"), ("file b", "2.0 KiB 22222222", None),
          ("file c", None, "2.0 KiB 22222222")]),
        ({"config": {"golden": [{"name": "a"}]}}, {"config": {"golden": [{"name": "b"}]}},
         [("golden.0.name", "a", "b")]),
    ],
)  # fmt: skip
def test_versions_are_compared_field_by_field(old: dict[str, Any], new: dict[str, Any], expected: list[Any]) -> None:
    base: dict[str, Any] = {"files": ()}
    found = differences.versions(version("m:1", **(base | old)), version("m:1", **(base | new)))
    assert [(each.field, each.old, each.new) for each in found] == expected


def test_the_change_that_is_under_way_is_found_by_its_target() -> None:
    simulation = Simulation()
    host = simulation.status["gpu-a1"]
    status = next(each for each in host.deployments if each.name == "reranker")
    seen = deployment_rows.Seen(status, (), host, NOW)
    assert (found := seen.rolling()) is not None and found.id == "op-swap"
    ended = replace(host, operations=(operation("deploy", "reranker"),))
    assert replace(seen, host=ended).rolling() is None
