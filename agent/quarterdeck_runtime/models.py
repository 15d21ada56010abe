"""Models and how to load them: a handler class out of the bundle, or a TorchScript file.

Everything here runs on the one thread that owns the model; nothing here knows of HTTP.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any, Protocol

from quarterdeck_runtime.bundle import Bundle
from quarterdeck_runtime.errors import BundleError, RequestError

OUTPUT = "output"


class Model(Protocol):
    """What a loaded model can do. `inputs` are arrays by name, or whatever `POST /predict` was sent."""

    batches: bool

    def predict(self, inputs: Any) -> Any:
        """The answer to one request: arrays or tensors by name, or one of them."""

    def predict_batch(self, requests: list[Any]) -> list[Any]:
        """One answer for each request, in order."""


def load(bundle: Bundle, device: str) -> Model:
    """Load the bundle's model onto `device`. Raises `BundleError` for settings that cannot work."""
    if bundle.runtime == "python":
        return Handler(bundle, device)
    if bundle.runtime == "torchscript":
        return TorchScript(bundle, device)
    raise BundleError(f"model.toml: this runtime serves python and torchscript, not {bundle.runtime!r}", "runtime")


def choose_device(asked: str | None) -> str:
    """`asked`, else the first GPU that the replica was given, else the CPU."""
    if asked:
        return asked
    # Importing torch only to learn that there is no GPU would cost a second and 150 MB.
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not Path("/dev/nvidiactl").exists():
        return "cpu"
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return "cpu"
    return "cuda:0" if torch.cuda.is_available() else "cpu"


class Handler:
    """A class of the bundle's own code with `load(bundle, device)`, `predict(inputs)`, maybe `predict_batch`."""

    def __init__(self, bundle: Bundle, device: str) -> None:
        self._handler = _handler_class(bundle)()
        self.batches = hasattr(self._handler, "predict_batch")
        if bundle.batch > 1 and not self.batches:
            raise BundleError("settings.batch is above 1, but the handler has no predict_batch", "settings.batch")
        self._handler.load(bundle.folder, device)

    def predict(self, inputs: Any) -> Any:
        return self._handler.predict(inputs)

    def predict_batch(self, requests: list[Any]) -> list[Any]:
        answers = list(self._handler.predict_batch(requests))
        if len(answers) != len(requests):
            raise ValueError(f"predict_batch returned {len(answers)} answers to {len(requests)} requests")
        return answers


def _handler_class(bundle: Bundle) -> type[Any]:
    name = bundle.settings.get("handler")
    module, colon, attribute = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not (module and colon and attribute):
        raise BundleError('settings.handler is not "module:Class"', "settings.handler")
    # The staged bundle is read-only, and a byte-code file would not be part of the version.
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(bundle.folder))
    found: Any = getattr(importlib.import_module(module), attribute, None)
    if not isinstance(found, type):
        raise BundleError(f"{module} has no class {attribute}", "settings.handler")
    for method in ("load", "predict"):
        if not callable(getattr(found, method, None)):
            raise BundleError(f"{name} has no method {method}", "settings.handler")
    return found


class TorchScript:
    """A scripted or traced module. Its arguments are filled by name, or in order where the names are not its own.

    `settings.reset` names a method to call before each request. With `settings.sequence` the module is called for
    each row of the first tensor in order, with the other arguments as they are; one-element results join to a vector.
    """

    batches = False

    def __init__(self, bundle: Bundle, device: str) -> None:
        self._torch: Any = importlib.import_module("torch")
        file = bundle.settings.get("file", "model.jit")
        self._module = self._torch.jit.load(str(bundle.folder / file), map_location=device).eval()
        self._device = device
        self._arguments = [argument for argument in self._module.forward.schema.arguments if argument.name != "self"]
        self._sequence = bool(bundle.settings.get("sequence", False))
        self._names = [str(name) for name in bundle.settings.get("outputs") or ()]
        reset = bundle.settings.get("reset")
        self._reset = getattr(self._module, reset, None) if reset else None
        if reset and self._reset is None:
            raise BundleError(f"{file} has no method {reset!r}", "settings.reset")

    def predict(self, inputs: Any) -> Any:
        if not isinstance(inputs, dict):
            raise RequestError("inputs is not an object of tensors by name", field="inputs")
        values = self._bind(inputs)
        with self._torch.inference_mode():
            if self._reset is not None:
                self._reset()
            return self._named(self._each(values) if self._sequence else self._module(**values))

    def predict_batch(self, requests: list[Any]) -> list[Any]:
        return [self.predict(inputs) for inputs in requests]

    def _bind(self, inputs: dict[str, Any]) -> dict[str, Any]:
        known = [argument.name for argument in self._arguments]
        if not inputs.keys() <= set(known):
            if len(inputs) > len(known):
                raise RequestError(f"the module takes {len(known)} inputs: {', '.join(known)}", field="inputs")
            inputs = dict(zip(known, inputs.values(), strict=False))
        values = {}
        for argument in self._arguments:
            if argument.name in inputs:
                values[argument.name] = self._value(argument, inputs[argument.name])
            elif not argument.has_default_value():
                raise RequestError(f"the module wants an input {argument.name!r}", field="inputs")
        return values

    def _value(self, argument: Any, given: Any) -> Any:
        kind = argument.type
        if kind.kind() == "OptionalType":
            kind = kind.getElementType()
        if kind.kind() == "TensorType":
            return self._torch.as_tensor(given, device=self._device)
        cast: Any = {"IntType": int, "FloatType": float, "BoolType": bool, "NumberType": float, "StringType": str}.get(
            kind.kind()
        )
        if cast is None:
            raise RequestError(f"the input {argument.name!r} is a {kind}, which no tensor can be", field="inputs")
        size = getattr(given, "size", 1)
        if size != 1:
            raise RequestError(f"the input {argument.name!r} is one {kind}, not {size}", field="inputs")
        return cast(given.reshape(-1)[0] if hasattr(given, "reshape") else given)

    def _each(self, values: dict[str, Any]) -> Any:
        first = next((name for name, value in values.items() if self._torch.is_tensor(value)), None)
        if first is None or values[first].dim() == 0 or not len(values[first]):
            raise RequestError("a sequence is a tensor with at least one row", field="inputs")
        results = [self._module(**{**values, first: row}) for row in values[first]]
        if isinstance(results[0], tuple | list):
            return tuple(self._join(list(column)) for column in zip(*results, strict=True))
        return self._join(results)

    def _join(self, results: list[Any]) -> Any:
        tensors = [self._torch.as_tensor(result) for result in results]
        single = all(tensor.numel() == 1 for tensor in tensors)
        return self._torch.stack([tensor.reshape(()) if single else tensor for tensor in tensors])

    def _named(self, result: Any) -> dict[str, Any]:
        if isinstance(result, dict):
            return result
        results = list(result) if isinstance(result, tuple | list) else [result]
        default = [OUTPUT] if len(results) == 1 else [f"{OUTPUT}_{index}" for index in range(len(results))]
        return dict(zip(self._names if len(self._names) == len(results) else default, results, strict=True))
