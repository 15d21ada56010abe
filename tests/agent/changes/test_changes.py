"""Edits of what is wanted: what a caller asks for, previewed and written, over a real store and the real catalogue."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import quarterdeck_agent
from quarterdeck_agent.bundle import canonical, parse, version_id
from quarterdeck_agent.catalogue import Catalogue, Launch, load
from quarterdeck_agent.changes import Changes, body_digest
from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.errors import Conflict, InvalidInput, NotFound
from quarterdeck_agent.gpus.placement import Sight
from quarterdeck_agent.gpus.torch_build import TorchBuild
from quarterdeck_agent.handover import Capacity
from quarterdeck_agent.protocol import (
    ChangeRequest,
    DeployRequest,
    Failure,
    FailureReason,
    Gpu,
    GpuFacts,
    Limits,
    Operation,
    OperationState,
    RollbackRequest,
    ScaleRequest,
    Spec,
    Version,
)
from quarterdeck_agent.store import Store
from quarterdeck_agent.wanted import Instant

GIB = 2**30
RUNTIMES = Path(quarterdeck_agent.__path__[0]) / "runtimes"


@dataclass
class Desk:
    """Changes over a store in a folder, with versions to deploy."""

    store: Store
    capacity: Capacity = field(default_factory=Capacity)
    woken: int = 0
    changes: Changes = field(init=False)

    def __post_init__(self) -> None:
        catalogue = load(RUNTIMES, Path("/nonexistent"))
        self.changes = Changes(self.store, catalogue, "process", lambda: self.capacity, self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def version(self, number: str, **config: Any) -> str:
        """Record a version of `toy` and give its label."""
        model = {"name": "toy", "version": number, "runtime": "command", "settings": {"command": ["serve"]}, **config}
        manifest = canonical((), model)
        made = Version(version_id(manifest), f"toy:{number}", "toy", "command", 0, (), datetime.now(UTC), "ana", model)
        now = made.created_at
        push = Operation(f"push-{number}", "push", made.label, "ana", now, OperationState.SUCCEEDED)
        return self.store.add_version(made, manifest, push).label

    def deploy(self, version: str, **wishes: Any) -> Operation:
        count = len(self.store.operations(1000))
        return self.changes.change("deploy", "toy", DeployRequest(version, **wishes), "ana", f"op-{count}")

    def serve(self, version: str, **wishes: Any) -> int:
        """Deploy and promote, as the reconciler would."""
        number = self.deploy(version, **wishes).revision
        assert number is not None
        self.store.promote("toy", number, Instant("boot", float(number)))
        return number


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    store = Store.open(tmp_path / "store.sqlite", tmp_path / "backups", SystemClock())
    yield Desk(store)
    store.close()


def test_a_preview_changes_nothing_and_tells_what_the_change_then_does(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    second = desk.version("2", env={"MODE": "fast"})
    request = DeployRequest(second, replicas=2, why="faster")
    before = (desk.store.writes, desk.woken)
    preview = desk.changes.preview("deploy", "toy", request)
    assert (desk.store.writes, desk.woken) == before
    operation = desk.changes.change("deploy", "toy", request, "ana", "op-x", preview.generation)
    assert operation.changes == preview.changes
    assert {(c.field, c.old, c.new) for c in preview.changes} >= {
        ("version", "toy:1", "toy:2"),
        ("replicas", "1", "2"),
        ("env.MODE", None, "fast"),
    }
    assert preview.if_it_fails == "toy:1 goes on serving"
    assert desk.store.revision("toy", 2).handover == preview.handover == "overlap"


def test_a_torch_that_no_gpu_of_the_host_could_run_is_refused_before_anything_is_written(desk: Desk) -> None:
    gpu = Gpu(0, "GPU-0", "NVIDIA H100", memory_total=80 * GIB, memory_used=0, memory_free=80 * GIB)
    facts = GpuFacts("GPU-0", driver="520.61", cuda="11.8", compute_capability=(9, 0))
    desk.capacity = Capacity(sight=Sight((gpu,), facts=(facts,)))
    on_gpu = {"runtime": "python", "settings": {"handler": "handler:Model"}, "resources": {"gpus": 1}}
    version = desk.version("1", **on_gpu)
    desk.changes = replace(desk.changes, torch_build=lambda: TorchBuild("2.13.0", "12.8", ("sm_90",)))
    why = re.escape("built for CUDA 12.8, and the driver 520.61 runs CUDA up to 11.8")
    with pytest.raises(InvalidInput, match=why):
        desk.changes.preview("deploy", "toy", DeployRequest(version))
    with pytest.raises(InvalidInput, match=why):
        desk.deploy(version)
    assert desk.store.operations(target="toy") == ()
    # Another image brings its own torch, a version without GPUs needs none of it, and what fits is let through.
    desk.deploy(desk.version("2", **{**on_gpu, "runtime": "command", "settings": {"command": ["serve"]}}))
    desk.deploy(desk.version("3", **{**on_gpu, "resources": {}}))
    desk.changes = replace(desk.changes, torch_build=lambda: TorchBuild("2.13.0", "11.8", ("sm_90",)))
    desk.deploy(version)


def test_what_is_known_of_a_launch_does_not_change_its_body() -> None:
    launch = Launch("image", ("serve",), {}, 8000, "/", "/")
    spec, model = Spec("0" * 64, "toy:1"), parse({"name": "toy", "version": "1", "runtime": "command"})
    assert body_digest(spec, model, launch) == body_digest(
        spec, model, replace(launch, facts_path="/v2", own_torch=True)
    )


def test_what_a_deploy_does_not_name_stays_as_it_runs(desk: Desk) -> None:
    limits = Limits(in_flight=3, queue=4)
    desk.serve(desk.version("1"), replicas=3, env={"A": "1"}, limits=limits, warm=5.0)
    desk.deploy(desk.version("2"))
    spec = desk.store.revision("toy", 2).spec
    assert (spec.label, spec.replicas, spec.env, spec.limits, spec.warm) == ("toy:2", 3, {"A": "1"}, limits, 5.0)


def test_the_start_timeout_of_a_version_is_the_deadline_of_its_first_rollout(desk: Desk) -> None:
    desk.deploy(desk.version("1", health={"start_timeout": 17.0}))
    assert desk.store.revision("toy", 1).spec.deadline == 17.0


def test_the_next_version_brings_its_own_start_timeout_unless_a_deadline_was_asked_for(desk: Desk) -> None:
    desk.serve(desk.version("1", health={"start_timeout": 17.0}))
    desk.serve(desk.version("2", health={"start_timeout": 5.0}))
    assert desk.store.revision("toy", 2).spec.deadline == 5.0
    desk.serve("toy:1", deadline=99.0)
    desk.serve("toy:2")
    assert desk.store.revision("toy", 4).spec.deadline == 99.0


def test_repeating_an_operation_gives_the_first_result_and_changes_nothing(desk: Desk) -> None:
    request = DeployRequest(desk.version("1"))
    first = desk.changes.change("deploy", "toy", request, "ana", "same")
    again = desk.changes.change("deploy", "toy", DeployRequest(desk.version("2")), "bo", "same")
    assert again == first
    assert len(desk.store.revisions("toy")) == 1


def test_an_operation_id_cannot_be_used_for_another_kind_of_change(desk: Desk) -> None:
    desk.changes.change("deploy", "toy", DeployRequest(desk.version("1")), "ana", "same")
    with pytest.raises(Conflict, match="was deploy toy"):
        desk.changes.change("stop", "toy", ChangeRequest(), "ana", "same")


def test_of_two_changes_from_one_look_the_second_loses_and_learns_to_whom(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    generation = desk.store.wanted().deployments[0].generation
    desk.changes.change("scale", "toy", ScaleRequest(2), "ana", "winner", generation)
    with pytest.raises(Conflict) as lost:
        desk.changes.change("scale", "toy", ScaleRequest(3), "bo", "loser", generation)
    assert lost.value.operation == "winner"


def test_a_rollback_goes_to_the_last_version_that_served_and_back_again(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    desk.serve(desk.version("2"))
    first = desk.changes.change("rollback", "toy", RollbackRequest(), "ana", "r1")
    assert first.revision is not None
    assert desk.store.revision("toy", first.revision).rollback_of == 1
    desk.store.promote("toy", first.revision, Instant("boot", 9.0))
    second = desk.changes.change("rollback", "toy", RollbackRequest(), "ana", "r2")
    assert second.revision is not None
    assert desk.store.revision("toy", second.revision).spec.label == "toy:2"


def test_a_rollback_skips_versions_that_never_served(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    failed = desk.deploy(desk.version("2")).revision
    assert failed is not None
    desk.store.fail("toy", failed, Failure(datetime.now(UTC), "golden", FailureReason.GOLDEN_MISMATCH, "no"))
    desk.serve(desk.version("3"))
    assert desk.changes.preview("rollback", "toy", RollbackRequest()).command == "qd rollback toy --to 1"


def test_a_rollback_during_a_rollout_takes_the_rollout_back(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    desk.deploy(desk.version("2"))
    operation = desk.changes.change("rollback", "toy", RollbackRequest(), "ana", "back")
    assert operation.revision is not None
    assert desk.store.revision("toy", operation.revision).spec.label == "toy:1"
    assert desk.store.revision("toy", 2).outcome == "superseded"


def test_a_rollback_brings_back_everything_but_a_stop(desk: Desk) -> None:
    desk.serve(desk.version("1"), replicas=2, env={"A": "1"})
    stopped = desk.changes.change("stop", "toy", ChangeRequest(), "ana", "stop").revision
    assert stopped is not None
    desk.store.promote("toy", stopped, Instant("boot", 5.0))
    operation = desk.changes.change("rollback", "toy", RollbackRequest(to=1), "ana", "back")
    assert operation.revision is not None
    spec = desk.store.revision("toy", operation.revision).spec
    assert not spec.stopped and (spec.replicas, spec.env) == (2, {"A": "1"})


def test_a_rollback_without_a_past_says_so(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    with pytest.raises(NotFound, match="no earlier revision"):
        desk.changes.change("rollback", "toy", RollbackRequest(), "ana", "r")
    with pytest.raises(NotFound) as unknown:
        desk.changes.change("rollback", "toy", RollbackRequest(to=7), "ana", "r")
    assert unknown.value.field == "to" and "1" in (unknown.value.hint or "")


def test_scaling_needs_no_new_replicas_of_another_body_and_a_restart_does(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    assert desk.changes.preview("scale", "toy", ScaleRequest(3)).handover == "none"
    assert desk.changes.preview("restart", "toy", ChangeRequest()).handover == "overlap"
    desk.changes.change("restart", "toy", ChangeRequest(), "ana", "again")
    d = desk.store.wanted().deployments[0]
    assert d.live is not None and d.target.body != d.live.body


def test_memory_that_does_not_suffice_for_both_means_a_hold_and_says_why(desk: Desk) -> None:
    desk.serve(desk.version("1", resources={"memory": "8GiB"}))
    desk.capacity = Capacity(64 * GIB, 6 * GIB)
    preview = desk.changes.preview("deploy", "toy", DeployRequest(desk.version("2", resources={"memory": "8GiB"})))
    assert preview.handover == "hold"
    assert "8 GiB" in preview.why
    assert preview.if_it_fails == "toy:1 starts again"
    assert "hold new requests" in preview.steps


def test_a_warm_revision_in_the_way_is_let_go_with_the_change(desk: Desk) -> None:
    memory = {"resources": {"memory": "8GiB"}}
    desk.serve(desk.version("1", **memory))
    desk.serve(desk.version("2", **memory))
    assert desk.store.wanted().deployments[0].previous is not None
    desk.capacity = Capacity(64 * GIB, 6 * GIB)
    desk.deploy(desk.version("3", **memory))
    d = desk.store.wanted().deployments[0]
    assert d.previous is None and d.target.handover == "overlap"


@pytest.mark.parametrize(
    ("wishes", "field"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replicas": 65}, "replicas"),
        ({"warm": -1.0}, "warm"),
        ({"dwell": float("inf")}, "dwell"),
        ({"limits": Limits(timeout=0.0)}, "limits.timeout"),
        ({"env": {"A=B": "x"}}, "env"),
        ({"env": {"A": "a\0b"}}, "env"),
        ({"why": "two\nlines"}, "why"),
        ({"why": "x" * 1001}, "why"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused_with_its_field_and_writes_nothing(
    desk: Desk, wishes: dict[str, Any], field: str
) -> None:
    label = desk.version("1")
    before = desk.store.writes
    with pytest.raises(InvalidInput) as refused:
        desk.deploy(label, **wishes)
    assert (refused.value.field or "").startswith(field)
    assert desk.store.writes == before and desk.store.wanted().deployments == ()


@pytest.mark.parametrize("name", ["..", "a/b", "", "A", "a" * 64, "é", "a\0"])
def test_a_name_that_is_none_is_refused(desk: Desk, name: str) -> None:
    request = DeployRequest(desk.version("1"))
    with pytest.raises(InvalidInput):
        desk.changes.change("deploy", name, request, "ana", "op")


def test_what_is_not_there_is_not_found_with_what_is(desk: Desk) -> None:
    with pytest.raises(NotFound):
        desk.changes.change("deploy", "toy", DeployRequest("toy:9"), "ana", "op")
    desk.serve(desk.version("1"))
    with pytest.raises(NotFound) as unknown:
        desk.changes.change("scale", "tyo", ScaleRequest(2), "ana", "op")
    assert "toy" in (unknown.value.hint or "")


def test_secrets_in_the_environment_show_in_no_diff(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    preview = desk.changes.preview("deploy", "toy", DeployRequest("toy:1", env={"API_TOKEN": "hunter2", "MODE": "x"}))
    shown = {change.field: change.new for change in preview.changes}
    assert shown == {"env.API_TOKEN": "(hidden)", "env.MODE": "x"}


def test_a_deployment_whose_runtime_is_gone_can_still_be_stopped_and_removed(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    desk.changes = replace(desk.changes, catalogue=Catalogue({}))
    with pytest.raises(NotFound, match="runtime"):
        desk.changes.change("restart", "toy", ChangeRequest(), "ana", "op-again")
    stopped = desk.changes.change("stop", "toy", ChangeRequest(), "ana", "op-stop")
    wanted = desk.store.deployment("toy")
    assert wanted is not None and wanted.target.number == stopped.revision and wanted.target.spec.stopped
    assert wanted.live is not None and wanted.target.body == wanted.live.body
    assert desk.changes.change("remove", "toy", ChangeRequest(), "ana", "op-remove").kind == "remove"


def test_a_deployment_that_is_being_removed_takes_no_changes(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    removal = desk.changes.change("remove", "toy", ChangeRequest(), "ana", "rm")
    assert removal.kind == "remove"
    with pytest.raises(Conflict, match="being removed"):
        desk.deploy("toy:1")
    desk.store.finish_removal("toy")
    assert desk.deploy("toy:1").revision == 2


def test_a_writable_root_and_a_user_show_in_the_plan(desk: Desk) -> None:
    label = desk.version("1", container={"writable_root": True, "user": "app"})
    text = " ".join(desk.changes.preview("deploy", "toy", DeployRequest(label)).warnings)
    assert "writable root" in text and "user app" in text
