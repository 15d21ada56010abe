"""Tensors of the Open Inference Protocol v2 in JSON, to and from numpy arrays.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol (REST, tensor data). The
data may be flat or nested; whatever does not fit its shape and datatype exactly is refused, never converted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quarterdeck_runtime.bundle import Declared
from quarterdeck_runtime.errors import RequestError

Array = npt.NDArray[Any]

DATATYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
_NAMES = {np.dtype(kind): name for name, kind in DATATYPES.items()}


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One request: its tensors by name in the order sent, and which outputs are asked for (all when empty)."""

    inputs: dict[str, Array]
    id: str | None = None
    outputs: tuple[str, ...] = ()


def parse_json(body: bytes) -> Any:
    """JSON without NaN and infinities; raises `RequestError`."""
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"the body is not JSON: {reason}"[:300], field="body") from error


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def parse_request(body: bytes, declared: Sequence[Declared] = ()) -> InferRequest:
    """An inference request; raises `RequestError` with the field that is wrong."""
    value = parse_json(body)
    if not isinstance(value, dict):
        raise RequestError("the body is not an object", field="body")
    items = value.get("inputs")
    if not isinstance(items, list) or not items:
        raise RequestError("inputs is not a list of at least one tensor", field="inputs")
    inputs: dict[str, Array] = {}
    for index, item in enumerate(items):
        name, array = _tensor(item, f"inputs[{index}]")
        if name in inputs:
            raise RequestError(f"two inputs are called {name[:80]!r}", field=f"inputs[{index}].name")
        inputs[name] = array
    _check_declared(inputs, declared)
    request_id = value.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise RequestError("id is not a text", field="id")
    return InferRequest(inputs, request_id, _outputs(value.get("outputs")))


def _outputs(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RequestError("outputs is not a list", field="outputs")
    for index, item in enumerate(value):
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise RequestError(f"outputs[{index}] has no name", field=f"outputs[{index}].name")
    return tuple(item["name"] for item in value)


def _tensor(item: object, where: str) -> tuple[str, Array]:
    if not isinstance(item, dict):
        raise RequestError(f"{where} is not an object", field=where)
    name = item.get("name")
    if not isinstance(name, str) or not name:
        raise RequestError(f"{where}.name is not a text", field=f"{where}.name")
    datatype = item.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise RequestError(
            f"{where}.datatype is {datatype!r}; known are {', '.join(DATATYPES)}"[:300], field=f"{where}.datatype"
        )
    shape = item.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 1 << 40 for size in shape):
        raise RequestError(f"{where}.shape is not a list of sizes", field=f"{where}.shape")
    if "data" not in item:
        raise RequestError(f"{where} has no data; only JSON data is served", field=f"{where}.data")
    array = _array(item["data"], datatype, f"{where}.data")
    wanted = math.prod(shape)
    if array.size != wanted:
        raise RequestError(
            f"{where}.data holds {array.size} values, its shape {shape} wants {wanted}", field=f"{where}.shape"
        )
    return name, array.reshape(shape)


def _array(data: object, datatype: str, where: str) -> Array:
    if not isinstance(data, list):
        raise RequestError(f"{where} is not a list", field=where)
    if datatype == "BYTES":
        return _texts(data, where)
    try:
        given = np.asarray(data) if data else np.asarray(data, dtype=DATATYPES[datatype])
    except (ValueError, OverflowError) as error:
        raise RequestError(f"{where} is ragged or holds values of several kinds", field=where) from error
    wanted = np.dtype(DATATYPES[datatype])
    allowed = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[wanted.kind]
    if given.dtype.kind not in allowed:
        raise RequestError(f"{where} holds values that are not {datatype}", field=where)
    if wanted.kind in "ui" and given.size:
        bounds = np.iinfo(wanted)
        if int(given.min()) < bounds.min or int(given.max()) > bounds.max:
            raise RequestError(f"{where} holds a number outside {datatype}", field=where)
    with np.errstate(over="ignore"):
        array = given.astype(wanted)
    if wanted.kind == "f" and not np.isfinite(array).all():
        raise RequestError(f"{where} holds a number outside {datatype}", field=where)
    return array


def _texts(data: list[Any], where: str) -> Array:
    flat: list[str] = []
    waiting = list(reversed(data))
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(reversed(value))
        elif isinstance(value, str):
            flat.append(value)
        else:
            raise RequestError(f"{where} holds values that are not BYTES (texts)", field=where)
    array = np.empty(len(flat), dtype=np.object_)
    array[:] = flat
    return array


def _check_declared(inputs: Mapping[str, Array], declared: Sequence[Declared]) -> None:
    if not declared:
        return
    places = {name: index for index, name in enumerate(inputs)}
    for one in declared:
        if one.name not in inputs:
            raise RequestError(f"the model wants an input {one.name!r}", field="inputs")
        where, array = f"inputs[{places[one.name]}]", inputs[one.name]
        if _NAMES[array.dtype] != one.datatype:
            raise RequestError(
                f"{one.name!r} is {_NAMES[array.dtype]}, the model wants {one.datatype}", field=f"{where}.datatype"
            )
        fits = len(array.shape) == len(one.shape) and all(
            want in (-1, have) for have, want in zip(array.shape, one.shape, strict=True)
        )
        if not fits:
            raise RequestError(
                f"{one.name!r} has the shape {list(array.shape)}, the model wants {list(one.shape)} (-1 is any)",
                field=f"{where}.shape",
            )
    unknown = [name for name in inputs if name not in {one.name for one in declared}]
    if unknown:
        raise RequestError(f"the model has no input {unknown[0][:80]!r}", field=f"inputs[{places[unknown[0]]}].name")


# --- answers ---------------------------------------------------------------------------------------------------


def named(outputs: object) -> dict[str, Any]:
    """What a model returned, by name: an object as it is, anything else under the name `output`."""
    return dict(outputs) if isinstance(outputs, Mapping) else {"output": outputs}


def encode_outputs(outputs: Mapping[str, Any], wanted: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Output tensors as the protocol has them; raises `RequestError` for one that is asked for and not there."""
    for index, name in enumerate(wanted):
        if name not in outputs:
            raise RequestError(
                f"the model has no output {name[:80]!r}; it has {', '.join(outputs)}", field=f"outputs[{index}].name"
            )
    encoded = []
    for name in wanted or outputs:
        array = as_array(outputs[name])
        encoded.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": _datatype(array, name),
                "data": array.reshape(-1).tolist(),
            }
        )
    return encoded


def plain(value: object) -> Any:
    """The value with every array and tensor in it as nested lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    return as_array(value).tolist()


def as_array(value: object) -> Array:
    """A torch tensor, a numpy array, or lists and scalars as an array in this process's memory."""
    detach = getattr(value, "detach", None)
    if detach is not None:
        tensor = detach().cpu()
        # numpy has no bfloat16; float32 holds each of its values exactly.
        return np.asarray(tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor)
    return np.asarray(value)


def _datatype(array: Array, name: str) -> str:
    if array.dtype.kind in "US":
        return "BYTES"
    if array.dtype not in _NAMES or (array.dtype.kind == "O" and not all(isinstance(x, str) for x in array.flat)):
        raise TypeError(f"the output {name!r} is neither numbers nor texts but {array.dtype}")
    return _NAMES[array.dtype]


def dump(value: object) -> bytes:
    """Compact JSON; raises `ValueError` for NaN and infinities, which JSON cannot say."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
