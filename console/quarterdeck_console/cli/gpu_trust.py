"""`qd gpus --trust`: somebody's word that a GPU is well again."""

from __future__ import annotations

from quarterdeck_agent.protocol import ChangeRequest, Gpu, GpuHealth
from quarterdeck_console import gpus
from quarterdeck_console.clean import clean_line
from quarterdeck_console.cli.call import Call, collect, show
from quarterdeck_console.errors import Usage
from quarterdeck_console.operations import new_id


def trust_gpu(call: Call, reference: str, why: str, yes: bool) -> int:
    """Have one GPU of one host take claims again: what was with it until now does not count any more."""
    host = call.target()
    answers, errors = collect(call, (host,), lambda client: client.status())
    if errors:
        return show(call, "OperationList", [], errors, answered=0, human=lambda: None)
    gpu = _found(gpus.devices(answers[0][1]), reference, host.name)
    if not yes:
        said = f" It is {gpu.health}: {clean_line(gpu.why)}." if gpu.health is not GpuHealth.OK else ""
        call.out.confirm(f"Trust GPU {gpu.index} of {host.name} again?{said}")
    request, operation_id = ChangeRequest(why), new_id()
    found, errors = collect(
        call, (host,), lambda client: client.trust_gpu(gpu.uuid, request, operation_id=operation_id)
    )

    def human() -> None:
        call.out.line(f"GPU {gpu.index} of {host.name} is trusted again; nothing moves back to it by itself")

    return show(call, "OperationList", found, errors, answered=len(found), human=human)


def _found(devices: tuple[gpus.Device, ...], reference: str, host: str) -> Gpu:
    """The whole GPU of that number, uuid, or beginning of a uuid."""
    whole = [each for each in devices if each.gpu.parent is None]
    exact = [each.gpu for each in whole if reference in (each.label, each.gpu.uuid)]
    begins = [each.gpu for each in whole if len(reference) >= 8 and each.gpu.uuid.startswith(reference)]
    found = exact or begins
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{each.label} ({each.gpu.uuid})" for each in whole) or "none"
    raise Usage(f"{host} has {'several GPUs' if found else 'no GPU'} {reference}", hint=f"its GPUs: {known}")
