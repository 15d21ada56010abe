"""What the torch of our own runtimes was built for, and whether a host's GPUs and driver can run it.

The build is read once, by a child of the agent's own interpreter: importing torch into the agent would cost it 200 MiB.
Containers of our runtimes are made of the same interpreter, so it holds for them too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quarterdeck_agent.protocol import GpuFacts

DEADLINE = 60.0
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)[a-z]?")


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """A build of torch: its version, the CUDA it was built with, `sm_90` machine code and `compute_90` code in it.

    `torch` is `None` where there is none, `cuda` where it is a build for CPUs.
    """

    torch: str | None = None
    cuda: str | None = None
    architectures: tuple[str, ...] = ()


class OwnTorch:
    """The build that this agent's own interpreter has. `build` blocks the first time: call it in a thread."""

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "quarterdeck_runtime.build")) -> None:
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._build: TorchBuild | None = None

    def build(self) -> TorchBuild | None:
        """The build; `None` where it cannot be told, and then it is asked again the next time."""
        with self._lock:
            if self._build is None:
                self._build = _read(self._command)
            return self._build


def _read(command: tuple[str, ...]) -> TorchBuild | None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=DEADLINE, check=True, stdin=subprocess.DEVNULL)
        said = json.loads(done.stdout)
        return TorchBuild(said["torch"], said["cuda"], tuple(map(str, said["architectures"])))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return None


def unsupported(build: TorchBuild, gpus: Sequence[GpuFacts]) -> str | None:
    """Why this build can run on none of these GPUs, in words; `None` when it can on one, or nobody can tell.

    A driver runs every CUDA of its own major version and of those before it; machine code runs on the same major
    architecture from its own minor version on, PTX on everything newer.
    Source: CUDA C++ Programming Guide, "Application Compatibility"; CUDA Compatibility, "Minor Version Compatibility".
    """
    if build.torch is None:
        return "the agent's interpreter has no torch (pip install 'quarterdeck[torch]')"
    if build.cuda is None:
        return f"torch {build.torch} is a build for CPUs; install one for CUDA where the agent is"
    reasons = [_because(build, one) for one in gpus]
    return reasons[0] if reasons and all(reasons) else None


def _because(build: TorchBuild, gpu: GpuFacts) -> str | None:
    checks: tuple[Callable[[TorchBuild, GpuFacts], str | None], ...] = (_too_new_for_driver, _without_code_for)
    return next((why for check in checks if (why := check(build, gpu)) is not None), None)


def _too_new_for_driver(build: TorchBuild, gpu: GpuFacts) -> str | None:
    wanted, able = _major(build.cuda), _major(gpu.cuda)
    if wanted is None or able is None or wanted <= able:
        return None
    return (
        f"torch {build.torch} is built for CUDA {build.cuda}, and the driver {gpu.driver or 'here'} runs CUDA up to "
        f"{gpu.cuda}; update the driver or install an older build"
    )


def _without_code_for(build: TorchBuild, gpu: GpuFacts) -> str | None:
    if gpu.compute_capability is None or not build.architectures:
        return None
    major, minor = gpu.compute_capability
    for architecture in build.architectures:
        found = _ARCHITECTURE.fullmatch(architecture)
        if found is None:
            continue
        kind, its_major, its_minor = found[1], int(found[2]), int(found[3])
        if kind == "sm" and its_major == major and its_minor <= minor:
            return None
        if kind == "compute" and (its_major, its_minor) <= (major, minor):
            return None
    return (
        f"torch {build.torch} has no code for compute capability {major}.{minor} (it has "
        f"{', '.join(build.architectures)}); install a build that has"
    )


def _major(version: str | None) -> int | None:
    head = (version or "").partition(".")[0]
    return int(head) if head.isdecimal() else None
