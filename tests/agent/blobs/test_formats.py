"""Formats by bytes and structure: a pickle is found under any name, and plain text is never taken for one."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quarterdeck_agent.blobs import Blobs
from quarterdeck_agent.errors import InvalidInput
from quarterdeck_agent.formats import Damaged, detect

from .making import listed, send


class Reaching:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return print, ("reached",)


def format_of(data: bytes, name: str = "file.bin") -> str:
    return detect(io.BytesIO(data), len(data), name).format


def archive(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data)  # of no time: tests are named after it, alike in each process
    return made.getvalue()


def npy(array: object) -> bytes:
    made = io.BytesIO()
    np.save(made, np.asarray(array), allow_pickle=True)
    return made.getvalue()


def safetensors(data: bytes = b"0000", end: int = 4) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


HARMFUL = pickle.dumps(Reaching(), protocol=4)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["model.pkl", "weights.bin", "README.md"])
def test_a_pickle_is_found_in_every_protocol_under_any_name(protocol: int, name: str) -> None:
    assert format_of(pickle.dumps(Reaching(), protocol=protocol), name) == "pickle"


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, bz2.compress, lzma.compress])
def test_a_packed_pickle_is_found(pack: Callable[[bytes], bytes]) -> None:
    assert format_of(pack(HARMFUL)) == "pickle"
    assert format_of(pack(b"only text\n" * 100)) == "plain"


def test_a_pickle_behind_a_long_harmless_beginning_is_found() -> None:
    assert format_of(b"(lp0\n" + b"I1\na" * 40_000 + b"cos\nsystem\n(S'id'\ntR.") == "pickle"


def test_numpy_arrays_are_plain_unless_they_hold_objects() -> None:
    assert format_of(npy([1.0, 2.0])) == "plain"
    assert format_of(npy(np.array([{}], dtype=object))) == "pickle"
    assert format_of(npy(np.zeros(1, dtype=[("a", "i4"), ("b", [("c", "O")])]))) == "pickle"
    assert format_of(npy(np.zeros(1, dtype=[("Offset", "i4")]))) == "plain"
    assert format_of(archive(**{"a.npy": npy([1]), "b.npy": npy(np.array([{}], dtype=object))})) == "pickle"
    assert format_of(archive(**{"a.npy": npy([1])})) == "plain"


def test_torch_archives_are_told_apart_by_what_is_inside() -> None:
    state_dict = {"m/data.pkl": HARMFUL, "m/data/0": b"0"}
    script = state_dict | {"m/constants.pkl": b"", "m/code/__torch__.py": b""}
    export = {"m/models/model.json": b"{}", "m/archive_format": b"pt2", "m/data/weights/w": b"0"}
    assert format_of(archive(**state_dict), "m.pt") == "pickle"
    assert format_of(archive(**script), "m.pt") == "torchscript"
    assert format_of(archive(**export), "m.pt2") == "torch_export"


def test_a_pickle_cannot_hide_behind_another_folder_of_its_archive() -> None:
    hidden = {"a/data.pkl": HARMFUL, "b/data.pkl": b"", "b/constants.pkl": b"", "b/code/x.py": b""}
    assert format_of(archive(**hidden)) == "pickle"
    assert format_of(archive(**{"a/data.pkl": HARMFUL, "serialized_exported_program.json": b"{}"})) == "pickle"
    assert format_of(archive(**{"model.pt": archive(**{"m/data.pkl": HARMFUL})})) == "pickle"


@pytest.mark.torch
def test_files_written_by_torch_are_what_they_are(tmp_path_factory: pytest.TempPathFactory) -> None:
    torch = pytest.importorskip("torch")
    model, folder = torch.nn.Linear(3, 2), tmp_path_factory.mktemp("torch")
    torch.save(model.state_dict(), folder / "new.pt")
    torch.save(model.state_dict(), folder / "old.pt", _use_new_zipfile_serialization=False)
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3),)), folder / "export.pt2")
    formats = {path.name: format_of(path.read_bytes(), path.name) for path in folder.iterdir()}
    assert formats == {"new.pt": "pickle", "old.pt": "pickle", "export.pt2": "torch_export"}


def test_formats_without_code_are_recognised() -> None:
    assert format_of(safetensors(), "w.safetensors") == "safetensors"
    assert format_of(b"GGUF" + struct.pack("<IQQ", 3, 1, 1)) == "gguf"
    assert format_of(b"\x08\x08\x3a\x02\x08\x00", "m.onnx") == "onnx"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (safetensors()[:-1], "w.safetensors"),
        (b"\xff" * 16, "w.safetensors"),
        (b"", "w.safetensors"),
        (struct.pack("<Q", 5) + b"[1,2]", "w.safetensors"),
        (b"GGUF", "m.gguf"),
        (b"GGUF" + b"\xff" * 20, "m.gguf"),
        (b"not a model", "m.onnx"),
        (b"\x3a\xff\xff\xff\xff\x7f", "m.onnx"),
        (archive(a=b"1")[:-30], "a.zip"),
        (b"\x93NUMPY\x01\x00\x05\x00(((((", "a.npy"),
    ],
)
def test_a_damaged_file_is_said_to_be_damaged(data: bytes, name: str) -> None:
    with pytest.raises(Damaged):
        format_of(data, name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "hello world\n",
        "cat\ndog\nNone\n",
        "count,label\n1,2\n",
        "00000000" * 9000,
        '{"a": 1}',
        "]\n",
        "import os\n",
        "classes\nbird\n(none)\n",
        "I am\n",
        "N.",
        "pickle\nball\n",
        "# README\n",
        "\x00" * 70000,
    ],
)
def test_text_and_figures_are_plain(text: str) -> None:
    assert format_of(text.encode()) == "plain"


@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY", b"GGUF", b"\x80\x04", b"\x78\x9c"]))
def test_any_bytes_are_told_or_damaged_and_nothing_else(data: bytes, magic: bytes) -> None:
    for name in ("a", "a.onnx", "a.safetensors"):
        try:
            format_of(magic + data, name)
        except Damaged:
            continue


def test_a_push_with_a_pickle_is_refused_by_the_name_of_the_file_unless_allowed(blobs: Blobs) -> None:
    send(blobs, HARMFUL)
    send(blobs, safetensors())
    files = [listed("w.safetensors", safetensors()), listed("weights/innocent.bin", HARMFUL)]
    with pytest.raises(InvalidInput, match=r"weights/innocent\.bin") as caught:
        blobs.formats(files)
    assert caught.value.field == "files[1]" and "--allow-pickle" in str(caught.value.hint)
    assert blobs.formats(files, allow_pickle=True) == ("pickle", "safetensors")
