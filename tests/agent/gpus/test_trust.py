"""Somebody's word that a GPU is well again: written with who and why, for GPUs of this host only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.errors import Conflict, InvalidInput, NotFound
from quarterdeck_agent.gpus.trust import Trust
from quarterdeck_agent.protocol import ChangeRequest, Gpu, GpuFacts, OperationState
from quarterdeck_agent.store import Store

GPUS = (Gpu(0, "GPU-a", "H", mig=True), Gpu(0, "MIG-1", "H", parent="GPU-a"), Gpu(1, "GPU-b", "H"))


@pytest.fixture
def trust(tmp_path: Path) -> Iterator[Trust]:
    store = Store.open(tmp_path / "store.sqlite", tmp_path / "backups", SystemClock())
    facts = (GpuFacts("GPU-a", ecc_uncorrected=3), GpuFacts("GPU-b"))
    yield Trust(store, lambda: GPUS, lambda: facts, lambda: None)
    store.close()


def test_it_is_an_operation_that_is_through_at_once(trust: Trust) -> None:
    made = trust.trust("GPU-a", ChangeRequest("was reset"), "ada", "op-1")
    assert made.state is OperationState.SUCCEEDED
    assert (made.kind, made.target, made.by, made.why) == ("trust-gpu", "GPU-a", "ada", "was reset")
    assert trust.store.operations()[0] == made
    kept = trust.store.gpu_memories()["GPU-a"]
    assert kept.trusted_errors == 3
    assert kept.trusted_at == made.finished_at


def test_a_repeat_changes_nothing_and_gives_the_first_result(trust: Trust) -> None:
    first = trust.trust("GPU-b", ChangeRequest("once"), "ada", "op-1")
    assert trust.trust("GPU-b", ChangeRequest("twice"), "ada", "op-1") == first
    with pytest.raises(Conflict):
        trust.trust("GPU-a", ChangeRequest(), "ada", "op-1")
    assert "GPU-a" not in trust.store.gpu_memories()


def test_only_whole_gpus_of_this_host_can_be_trusted(trust: Trust) -> None:
    with pytest.raises(NotFound, match="GPU-x") as caught:
        trust.trust("GPU-x", ChangeRequest(), "ada", "op-1")
    assert caught.value.hint == "GPUs here: GPU-a, GPU-b."
    with pytest.raises(InvalidInput) as refused:
        trust.trust("MIG-1", ChangeRequest(), "ada", "op-1")
    assert "GPU-a" in (refused.value.hint or "")
    assert trust.store.operations() == ()


def test_a_reason_of_more_than_a_line_is_refused(trust: Trust) -> None:
    with pytest.raises(InvalidInput):
        trust.trust("GPU-a", ChangeRequest("one\ntwo"), "ada", "op-1")
