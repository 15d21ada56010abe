"""Open Inference Protocol tensors: what is taken, what is refused and where, and what goes back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from quarterdeck_runtime.bundle import Declared
from quarterdeck_runtime.errors import RequestError
from quarterdeck_runtime.tensors import dump, encode_outputs, named, parse_request, plain
from quarterdeck_runtime.threads import wanted


def tensor(data: Any, shape: list[Any], datatype: str = "FP32", name: str = "x") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def body(*tensors: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (tensor([1, 2, 3, 4], [2, 2]), np.array([[1, 2], [3, 4]], dtype=np.float32)),
        (tensor([[1, 2], [3, 4]], [2, 2]), np.array([[1, 2], [3, 4]], dtype=np.float32)),
        (tensor([7], [], "INT64"), np.array(7, dtype=np.int64)),
        (tensor([], [0, 3], "FP64"), np.zeros((0, 3))),
        (tensor([True, False], [2], "BOOL"), np.array([True, False])),
        (tensor([255], [1], "UINT8"), np.array([255], dtype=np.uint8)),
        (tensor([2**64 - 1], [1], "UINT64"), np.array([2**64 - 1], dtype=np.uint64)),
        (tensor([["ä", "b"]], [1, 2], "BYTES"), np.array([["ä", "b"]], dtype=object)),
    ],
)
def test_a_tensor_arrives_as_it_was_meant(item: dict[str, Any], expected: Any) -> None:
    array = parse_request(body(item)).inputs["x"]
    assert array.dtype == expected.dtype and array.shape == expected.shape and (array == expected).all()


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        (b"{", "body"),
        (b"[" * 100_000, "body"),
        (b'{"inputs": NaN}', "body"),
        (b"[]", "body"),
        (b"{}", "inputs"),
        (body(), "inputs"),
        (body(3), "inputs[0]"),
        (body({"shape": [1], "datatype": "FP32", "data": [1]}), "inputs[0].name"),
        (body(tensor([1], [1]), tensor([1], [1])), "inputs[1].name"),
        (body(tensor([1], [1], "FLOAT")), "inputs[0].datatype"),
        (body(tensor([1], [1], "BF16")), "inputs[0].datatype"),
        (body(tensor([1], [-1])), "inputs[0].shape"),
        (body(tensor([1], [1.0])), "inputs[0].shape"),
        (body(tensor([1], [True])), "inputs[0].shape"),
        (body(tensor([1], [2**60, 2**60])), "inputs[0].shape"),
        (body(tensor([1, 2, 3], [2, 2])), "inputs[0].shape"),
        (body({"name": "x", "shape": [1], "datatype": "FP32"}), "inputs[0].data"),
        (body(tensor(1, [])), "inputs[0].data"),
        (body(tensor([[1], [2, 3]], [3])), "inputs[0].data"),
        (body(tensor(["1"], [1])), "inputs[0].data"),
        (body(tensor([None], [1])), "inputs[0].data"),
        (body(tensor([True], [1], "INT64")), "inputs[0].data"),
        (body(tensor([1.5], [1], "INT64")), "inputs[0].data"),
        (body(tensor([256], [1], "UINT8")), "inputs[0].data"),
        (body(tensor([-1], [1], "UINT8")), "inputs[0].data"),
        (body(tensor([2**70], [1], "INT64")), "inputs[0].data"),
        (body(tensor([1e39], [1])), "inputs[0].data"),
        (body(tensor([1], [1], "BYTES")), "inputs[0].data"),
        (body(tensor([1], [1]), id=3), "id"),
        (body(tensor([1], [1]), outputs={}), "outputs"),
        (body(tensor([1], [1]), outputs=[{}]), "outputs[0].name"),
    ],
)
def test_whatever_does_not_fit_is_refused_with_its_field(sent: bytes, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(sent)
    assert caught.value.field == field


DECLARED = (Declared("x", "FP32", (-1, 2)), Declared("n", "INT64", (1,)))


@pytest.mark.parametrize(
    ("tensors", "field"),
    [
        ([tensor([1, 2], [1, 2])], "inputs"),
        ([tensor([1, 2], [1, 2], "FP64"), tensor([1], [1], "INT64", "n")], "inputs[0].datatype"),
        ([tensor([1], [1], "INT64", "n"), tensor([1, 2, 3], [1, 3])], "inputs[1].shape"),
        ([tensor([1, 2], [2]), tensor([1], [1], "INT64", "n")], "inputs[0].shape"),
        ([tensor([1, 2], [1, 2]), tensor([1], [1], "INT64", "n"), tensor([1], [1], name="y")], "inputs[2].name"),
    ],
)
def test_declared_inputs_are_held_to(tensors: list[dict[str, Any]], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(body(*tensors), DECLARED)
    assert caught.value.field == field
    parse_request(body(tensor([1, 2], [1, 2]), tensor([1], [1], "INT64", "n")), DECLARED)


def test_outputs_go_back_with_shape_and_datatype() -> None:
    outputs = {"label": np.array([[1, 2]]), "sure": np.array(0.5, dtype=np.float32), "words": ["a", "b"]}
    assert encode_outputs(outputs) == [
        {"name": "label", "shape": [1, 2], "datatype": "INT64", "data": [1, 2]},
        {"name": "sure", "shape": [], "datatype": "FP32", "data": [0.5]},
        {"name": "words", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]},
    ]
    assert [output["name"] for output in encode_outputs(outputs, ["sure"])] == ["sure"]
    assert named([1, 2]) == {"output": [1, 2]}
    assert plain(outputs) == {"label": [[1, 2]], "sure": 0.5, "words": ["a", "b"]}


def test_an_output_that_is_not_there_is_the_asker_s_mistake() -> None:
    with pytest.raises(RequestError) as caught:
        encode_outputs({"a": [1]}, ["a", "b"])
    assert caught.value.field == "outputs[1].name"


def test_what_json_cannot_say_is_the_model_s_mistake() -> None:
    with pytest.raises(TypeError):
        encode_outputs({"a": object()})
    with pytest.raises(ValueError, match="JSON"):
        dump(encode_outputs({"a": np.array([np.nan])}))


@pytest.mark.parametrize(
    ("ask", "threads"), [("", 7), ("1", 1), ("2.5", 2), ("0.2", 1), ("16", 16), ("-1", 7), ("nan", 7), ("x", 7)]
)
def test_threads_come_from_the_cpu_ask(ask: str, threads: int) -> None:
    assert wanted(ask, 7) == threads
