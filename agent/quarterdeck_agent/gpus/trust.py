"""Somebody's word that a GPU is well again: checked and written here, and never acted on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quarterdeck_agent.errors import InvalidInput, NotFound
from quarterdeck_agent.protocol import ChangeRequest, Gpu, GpuFacts, Operation
from quarterdeck_agent.store import NewOperation, Store

LONGEST_WHY = 1000


@dataclass(frozen=True, slots=True)
class Trust:
    """Edits of what is remembered of GPUs. May block on the disk: call it in a thread.

    `gpus` and `facts` tell what NVML told last; `written` is called after every change that was written.
    """

    store: Store
    gpus: Callable[[], tuple[Gpu, ...]]
    facts: Callable[[], tuple[GpuFacts, ...]]
    written: Callable[[], None]

    def trust(self, uuid: str, request: ChangeRequest, by: str, operation: str) -> Operation:
        """Have a GPU's Xids and memory errors until now not count any more. What NVML says of it now still does.

        Raises `NotFound` for a GPU that is not on this host, `InvalidInput` for a MIG instance, `Conflict` when the
        operation id belongs to another change.
        """
        if len(request.why) > LONGEST_WHY or not request.why.isprintable():
            raise InvalidInput("the reason is too long or not a line of text", field="why", hint="Use one line.")
        gpu = self._found(uuid)
        facts = next((each for each in self.facts() if each.uuid == uuid), None)
        errors = (facts.ecc_uncorrected or 0) if facts is not None else 0
        new = NewOperation(operation, "trust-gpu", uuid, by, f"trust GPU {gpu.index} again", request.why)
        written, _ = self.store.trust_gpu(uuid, errors, new)
        self.written()
        return written

    def _found(self, uuid: str) -> Gpu:
        gpu = next((each for each in self.gpus() if each.uuid == uuid), None)
        if gpu is None:
            known = ", ".join(each.uuid for each in self.gpus() if each.parent is None) or "none"
            raise NotFound(f"there is no GPU {uuid} on this host", field="uuid", hint=f"GPUs here: {known}.")
        if gpu.parent is not None:
            raise InvalidInput(
                f"{uuid} is a part of a GPU", field="uuid", hint=f"Trust the GPU it is cut from: {gpu.parent}."
            )
        return gpu
