"""What a change says of the GPUs before anybody agrees to it, and which changes are refused outright."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quarterdeck_agent.bundle import canonical, parse, version_id
from quarterdeck_agent.catalogue import Launch
from quarterdeck_agent.changes import body_digest
from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.errors import InvalidInput
from quarterdeck_agent.gpus.placement import KEPT, STARTING, Claim, Sight
from quarterdeck_agent.handover import Capacity
from quarterdeck_agent.protocol import ChangeRequest, DeployRequest, RollbackRequest, ScaleRequest, Spec
from quarterdeck_agent.store import Store
from tests.agent.changes.test_changes import Desk
from tests.agent.placement.rack import GIB, Card, sight

LARGE = {"gpus": 1, "vram": "40GiB"}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    store = Store.open(tmp_path / "store.sqlite", tmp_path / "backups", SystemClock())
    yield Desk(store, Capacity(sight=sight(Card(), Card())))
    store.close()


def seen(desk: Desk, *cards: Card, vram: int | None = 40, on: str = "gpu-0") -> None:
    """From now on these are the host's GPUs, and the live revision of toy has its replica on the first."""
    body = next(d.live.body for d in desk.store.wanted().deployments if d.live is not None)
    claim = Claim(on, "toy-1-0", "toy", body, None if vram is None else vram * GIB)
    desk.capacity = Capacity(sight=sight(*cards), claims=(claim,))


def test_a_first_deploy_says_where_it_goes(desk: Desk) -> None:
    desk.capacity = Capacity(sight=sight(Card(held=((None, 70),)), Card()))
    preview = desk.changes.preview("deploy", "toy", DeployRequest(desk.version("1", resources=LARGE)))
    assert "start 1 replica on gpu1" in preview.steps
    spread = desk.changes.preview("deploy", "toy", DeployRequest("toy:1", replicas=1))
    assert spread.warnings == preview.warnings


def test_a_hold_says_what_it_waits_for_and_where(desk: Desk) -> None:
    desk.serve(desk.version("1", resources=LARGE))
    seen(desk, Card(total=60, held=(("toy-1-0", 38),)))
    preview = desk.changes.preview("deploy", "toy", DeployRequest(desk.version("2", resources=LARGE)))
    assert preview.handover == "hold"
    assert preview.why == "needs 40 GiB on one GPU, 20 GiB free beside toy:1"
    assert "wait for 40 GiB on gpu0" in preview.steps
    assert preview.if_it_fails == "toy:1 starts again"


@pytest.mark.parametrize(("note", "says"), [(KEPT, "kept for other"), (STARTING, "given to other, which is starting")])
def test_a_place_that_another_deployment_is_to_get_is_no_room_beside_what_runs_and_it_is_said_whose_it_is(
    desk: Desk, note: str, says: str
) -> None:
    desk.serve(desk.version("1", resources=LARGE))
    seen(desk, Card(total=100, held=(("toy-1-0", 38),)))
    second = DeployRequest(desk.version("2", resources=LARGE))
    assert desk.changes.preview("deploy", "toy", second).handover == "overlap"
    theirs = Claim("gpu-0", "other 0", "other", "other", 40 * GIB, note)
    desk.capacity = replace(desk.capacity, claims=(*desk.capacity.claims, theirs))
    preview = desk.changes.preview("deploy", "toy", second)
    assert preview.handover == "hold"
    assert preview.why == f"needs 40 GiB on one GPU, 20 GiB free beside toy:1; 40 GiB on gpu0 {says}"


@pytest.mark.parametrize(
    ("vram", "note", "says"),
    [
        (60, KEPT, "gpu0 has 20 GiB free: 60 GiB kept for other"),
        (60, STARTING, "gpu0 has 20 GiB free: 60 GiB taken by other, which is starting"),
        (None, KEPT, "gpu0 is kept for other"),
        (None, STARTING, "gpu0 is claimed whole by other, which is starting"),
        (None, "", "gpu0 is claimed whole by other"),
    ],
)
def test_a_deploy_that_has_to_wait_for_what_another_one_gets_says_for_whom(
    desk: Desk, vram: int | None, note: str, says: str
) -> None:
    theirs = Claim("gpu-0", "other 0", "other", "other", None if vram is None else vram * GIB, note)
    desk.capacity = Capacity(sight=sight(Card()), claims=(theirs,))
    preview = desk.changes.preview("deploy", "toy", DeployRequest(desk.version("1", resources=LARGE)))
    assert f"it would wait for its place: needs 40 GiB on one GPU; {says}" in preview.warnings


def test_measured_peaks_decide_and_are_named(desk: Desk) -> None:
    desk.serve(desk.version("1", resources={"gpus": 1, "vram": "60GiB"}))
    live = next(d.live for d in desk.store.wanted().deployments if d.live is not None)
    second = desk.version("2", resources={"gpus": 1, "vram": "38GiB"})
    seen(desk, Card(held=(("toy-1-0", 41),)), vram=60)
    assert desk.changes.preview("deploy", "toy", DeployRequest(second)).why == (
        "needs 38 GiB on one GPU, 20 GiB free beside toy:1"
    )
    desk.store.record_gpu_memory("toy", live.body, 41 * GIB)
    preview = desk.changes.preview("deploy", "toy", DeployRequest(second))
    assert (preview.handover, preview.why) == ("overlap", "both fit side by side")
    desk.store.record_gpu_memory("toy", live.body, 43 * GIB)
    assert desk.changes.preview("deploy", "toy", DeployRequest(second)).why == (
        "needs 38 GiB on one GPU, 37 GiB free beside toy:1 (measured peak 43 GiB)"
    )


def test_a_rollback_uses_what_its_own_version_was_measured_to_need(desk: Desk) -> None:
    desk.serve(desk.version("1", resources=LARGE))
    first = next(d.live for d in desk.store.wanted().deployments if d.live is not None)
    desk.store.record_gpu_memory("toy", first.body, 15 * GIB)
    desk.serve(desk.version("2", resources=LARGE))
    desk.store.forget_previous("toy")
    seen(desk, Card(total=60, held=(("toy-1-0", 38),)))
    preview = desk.changes.preview("deploy", "toy", DeployRequest("toy:1"))
    assert (preview.handover, preview.why) == ("overlap", "both fit side by side: 15 GiB measured peak")


def warm(desk: Desk, *, resources: dict[str, Any] = LARGE) -> None:
    """toy:2 serves on gpu-0, toy:1 is kept warm on gpu-1, and there is no room for more."""
    desk.capacity = Capacity(sight=sight(Card(labels=("new",)), Card(labels=("new",))))
    desk.serve(desk.version("1", resources=resources))
    desk.serve(desk.version("2", resources=LARGE))
    (d,) = desk.store.wanted().deployments
    assert d.live is not None and d.previous is not None
    cards = (Card(total=50, held=(("toy-2-0", 40),)), Card(total=50, held=(("toy-1-0", 40),), labels=("new",)))
    claims = (
        Claim("gpu-0", "toy-2-0", "toy", d.live.body, 40 * GIB),
        Claim("gpu-1", "toy-1-0", "toy", d.previous.body, 40 * GIB),
    )
    desk.capacity = Capacity(sight=sight(*cards), claims=claims)


def test_a_rollback_to_what_is_warm_is_never_refused_for_the_gpus_it_would_need(desk: Desk) -> None:
    warm(desk, resources={**LARGE, "gpu_labels": ["new"]})
    seen = desk.capacity.sight
    unlabelled = replace(seen, facts=tuple(replace(facts, labels=()) for facts in seen.facts))
    desk.capacity = replace(desk.capacity, sight=unlabelled)
    preview = desk.changes.preview("rollback", "toy", RollbackRequest())
    assert (preview.handover, preview.why) == ("overlap", "its replicas are still warm")


def test_a_rollback_to_what_is_warm_needs_no_room_and_one_whose_replicas_have_ended_does(desk: Desk) -> None:
    warm(desk)
    assert desk.changes.preview("rollback", "toy", RollbackRequest()).why == "its replicas are still warm"
    taken = replace(desk.capacity.claims[1], deployment="other", replica="other-1-0", body="other")
    desk.capacity = replace(desk.capacity, claims=(desk.capacity.claims[0], taken))
    assert desk.changes.preview("rollback", "toy", RollbackRequest()).handover == "hold"


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        ({"gpus": 1, "vram": "90GiB"}, "needs 90 GiB on one GPU; the largest here has 80 GiB"),
        ({"gpus": 3}, "needs 3 GPUs for itself; this host has 2 such"),
        ({"mig": "1g.10gb"}, "needs one MIG instance 1g.10gb; MIG instances here: none"),
        ({"gpus": 1, "gpu_model": "H100"}, "needs one H100 GPU for itself; this host has 2 × NVIDIA A100"),
    ],
)
def test_what_no_gpu_here_could_ever_carry_is_refused_and_nothing_is_written(
    desk: Desk, resources: dict[str, Any], says: str
) -> None:
    desk.version("1", resources=resources)
    before = desk.store.writes
    with pytest.raises(InvalidInput) as caught:
        desk.deploy("toy:1")
    assert f"toy:1 can never run on this host: it {says}" in caught.value.detail
    assert caught.value.field == "resources.gpus" and "another host" not in caught.value.detail
    assert desk.store.writes == before


def test_a_host_without_gpus_refuses_what_asks_for_one(desk: Desk) -> None:
    desk.capacity = Capacity()
    with pytest.raises(InvalidInput, match="NVML shows no GPU on this host"):
        desk.deploy(desk.version("1", resources=LARGE))


def test_while_nvml_does_not_answer_a_deploy_is_taken_and_says_that_it_waits(desk: Desk) -> None:
    desk.capacity = Capacity(sight=Sight(trouble="the GPUs cannot be seen now: NVML hangs"))
    preview = desk.changes.preview("deploy", "toy", DeployRequest(desk.version("1", resources=LARGE)))
    assert any("NVML hangs" in warning for warning in preview.warnings)
    desk.deploy("toy:1")


def test_scaling_beyond_the_host_is_refused_but_a_stop_never_is(desk: Desk) -> None:
    desk.serve(desk.version("1", resources={"gpus": 1}))
    with pytest.raises(InvalidInput, match="room for 2"):
        desk.changes.change("scale", "toy", ScaleRequest(3), "ana", "op-scale")
    desk.capacity = Capacity()
    desk.changes.change("stop", "toy", ChangeRequest(), "ana", "op-stop")
    desk.changes.change("remove", "toy", ChangeRequest(), "ana", "op-rm")


def test_a_rollout_that_the_change_takes_back_is_not_in_its_way(desk: Desk) -> None:
    desk.serve(desk.version("1", resources=LARGE))
    desk.deploy(desk.version("2", resources=LARGE))
    seen(desk, Card(held=(("toy-1-0", 38),)), Card(held=(("toy-2-0", 38), (None, 15))))
    pending = next(d.target.body for d in desk.store.wanted().deployments)
    beside = Claim("gpu-1", "toy-2-0", "toy", pending, 40 * GIB)
    desk.capacity = replace(desk.capacity, claims=(*desk.capacity.claims, beside))
    third = desk.version("3", resources={"gpus": 1, "vram": "60GiB"})
    assert desk.changes.preview("deploy", "toy", DeployRequest(third)).handover == "overlap"


def test_what_another_deployment_keeps_warm_makes_room_before_requests_have_to_wait(desk: Desk) -> None:
    desk.serve(desk.version("1", resources=LARGE))
    desk.serve(desk.version("2", resources=LARGE))
    warm = next(d.previous for d in desk.store.wanted().deployments)
    assert warm is not None
    claim = Claim("gpu-0", "toy-1-0", "toy", warm.body, 40 * GIB)
    desk.capacity = Capacity(sight=sight(Card(held=(("toy-1-0", 38), (None, 20)))), claims=(claim,))
    preview = desk.changes.preview("deploy", "other", DeployRequest("toy:1"))
    assert "start 1 replica on gpu0" in preview.steps
    assert not any("wait" in warning for warning in preview.warnings)
    desk.capacity = Capacity(sight=sight(Card(held=((None, 60),))))
    preview = desk.changes.preview("deploy", "other", DeployRequest("toy:1"))
    assert any("it would wait for its place" in warning for warning in preview.warnings)


def test_more_replicas_of_what_runs_say_when_they_have_to_wait(desk: Desk) -> None:
    desk.serve(desk.version("1", resources=LARGE))
    seen(desk, Card(held=(("toy-1-0", 38),)), Card(held=((None, 60),)))
    room = desk.changes.preview("scale", "toy", ScaleRequest(2))
    assert not any("wait" in warning for warning in room.warnings)
    seen(desk, Card(held=(("toy-1-0", 38), (None, 20))), Card(held=((None, 60),)))
    short = desk.changes.preview("scale", "toy", ScaleRequest(2))
    assert any("1 replica would wait for its place: needs 40 GiB on one GPU" in warning for warning in short.warnings)


def test_resources_that_are_not_asked_for_change_no_identity() -> None:
    """Versions and bodies from before there were GPU constraints keep their ids: nothing is started anew for them."""
    config = {
        "name": "toy",
        "version": "1",
        "runtime": "command",
        "settings": {"command": ["serve"]},
        "resources": {"gpus": 1, "vram": "4GiB", "memory": "1GiB", "cpus": 2},
    }
    launch = Launch(None, ("serve",), {}, 8000, "/", "/")
    spec = Spec("v", "toy:1", env={"A": "1"})
    model = parse(config)
    assert body_digest(spec, model, launch) == "d5b01abf4ea4693992ba5803eefdd265"
    assert version_id(canonical((), config)) == "33ccf9c3de07de4e968918213929ed814b5a5d604e8ba36c212ecb29e3d8c4ca"
    for change in ({"exclusive": True}, {"gpu_model": "H100"}, {"gpu_labels": ("fast",)}):
        other = replace(model, resources=replace(model.resources, **change))
        assert body_digest(spec, other, launch) != body_digest(spec, model, launch)
