"""One way to ask NVML: what a GPU, its driver or this pynvml does not have is `None`; their end is raised.

Return codes are those of nvml.h (`nvmlReturn_t`); they never change their numbers.
"""

from __future__ import annotations

from typing import Any

UNINITIALIZED = 1
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16
VERSION_MISMATCH = 18
UNKNOWN = 999

ENDED = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, VERSION_MISMATCH})
"""NVML itself is over: nothing more can be asked until it is begun anew."""

LOST = frozenset({GPU_IS_LOST, RESET_REQUIRED})
"""This GPU is over, whatever it is asked."""

REFUSED = frozenset({NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND})
"""The answer would be the same next second."""

_RESET = "stop qd-agent (replicas go on) and whatever uses the GPU, then nvidia-smi --gpu-reset; or reboot the host"
# No process may have the GPU open then, also none that only watches it through NVML:
# https://github.com/NVIDIA/gpu-operator/issues/118

_CURES = {
    GPU_IS_LOST: f"it has fallen off the bus (see dmesg for Xid 79): {_RESET}",
    RESET_REQUIRED: f"to reset it: {_RESET}",
    UNKNOWN: f"see dmesg for Xid errors; if it does not pass: {_RESET}",
}


class NvmlEnded(Exception):
    """NVML has to be begun anew: it was shut down, the driver was unloaded, or it is another version now."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code = code


class GpuLost(Exception):
    """NVML cannot reach this GPU. The text says why and what to do."""


class Progress:
    """Which call is under way, for whoever finds that it hangs. Written by one thread, read by another."""

    __slots__ = ("call",)

    def __init__(self) -> None:
        self.call = ""


class Ask:
    """Asks about one handle. What was refused once is not asked again until `forget`: a refusal costs like an answer.

    `code` is that of the last error, `trouble` says in words the last one that was neither a refusal nor an end.
    """

    def __init__(self, nvml: Any, handle: Any, progress: Progress) -> None:
        self.nvml, self.handle = nvml, handle
        self.code = 0
        self.trouble = ""
        self.answers = 0
        self._progress = progress
        self._refused: set[tuple[object, ...]] = set()

    def __call__(self, name: str, *arguments: Any) -> Any:
        """What NVML answers to `name(handle, *arguments)`, or `None`. Raises GpuLost, NvmlEnded."""
        return self.keyed((name, *arguments), name, arguments)

    def keyed(self, key: tuple[object, ...], name: str, arguments: tuple[Any, ...]) -> Any:
        """The same for a call one of whose arguments is never the same twice: a refusal is remembered under `key`."""
        if key in self._refused:
            return None
        call = getattr(self.nvml, name, None)
        if call is None:
            self.code = FUNCTION_NOT_FOUND
            self._refused.add(key)
            return None
        self._progress.call = name
        try:
            answer = call(self.handle, *arguments)
        except self.nvml.NVMLError as error:
            self._failed(key, error)
            return None
        except UnicodeDecodeError as error:
            self.code, self.trouble = UNKNOWN, f"{name}: {error}"
            return None
        self.answers += 1
        return answer

    def first(self, names: tuple[str, ...], *arguments: Any) -> Any:
        """The answer of the first of `names` (newest first) that this library and driver have."""
        for name in names:
            answer = self(name, *arguments)
            if answer is not None or (name, *arguments) not in self._refused:
                return answer
        return None

    def refused(self, name: str, *arguments: Any) -> bool:
        """Whether `name` was refused, as opposed to having failed or given nothing this time."""
        return (name, *arguments) in self._refused

    def forget(self) -> None:
        """Ask again what was refused: a mode may have changed."""
        self._refused.clear()

    def _failed(self, key: tuple[object, ...], error: Exception) -> None:
        self.code = code = code_of(error)
        if code in LOST:
            raise GpuLost(describe(error)) from error
        raise_if_ended(error)
        if code in REFUSED:
            self._refused.add(key)
        else:
            self.trouble = describe(error)


def code_of(error: BaseException) -> int:
    """The `nvmlReturn_t` of an error of pynvml."""
    value = getattr(error, "value", UNKNOWN)
    return value if isinstance(value, int) else UNKNOWN


def raise_if_ended(error: BaseException) -> None:
    """Raise NvmlEnded where the error is not the GPU's but NVML's own."""
    if code_of(error) in ENDED:
        raise NvmlEnded(code_of(error), words(error)) from error


def words(error: BaseException) -> str:
    """An error in NVML's words. A code that pynvml does not know is looked up in the library, which may fail too."""
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - whatever the library does with a code of its own, there is the code
        said = ""
    return said or f"NVML error {code_of(error)}"


def describe(error: BaseException) -> str:
    """An error, and what to do about it where that is known."""
    cure = _CURES.get(code_of(error))
    return f"{words(error)}; {cure}" if cure else words(error)


def text(value: str | bytes) -> str:
    """A string of NVML: pynvml gives text, older ones bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
