"""Tells the format of a model file from its first bytes and its structure, never from its name alone.

The pickle family is what this module is for: such a file runs code of its author the moment it is loaded. All
readers are bounded, load nothing, execute nothing and extract nothing.
"""

from __future__ import annotations

import ast
import bz2
import io
import json
import lzma
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

HEAD = 65_536
MAX_HEADER = 25 << 20
MAX_DIRECTORY = 32 << 20
MAX_MEMBERS = 20_000

# Opcodes that name code, and those that call it: https://docs.python.org/3/library/pickletools.html
_NAMING = {"STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}
_CALLING = {"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
_NAMES = re.compile(r"[\w.]+ [\w.]+")
_PICKLE_NAMES = (".pkl", ".pickle", ".joblib", ".dill")
_TORCH_NAMES = (".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class Found:
    """`format` is safetensors, gguf, onnx, torchscript, torch_export, pickle or plain; `detail` says why a pickle."""

    format: str
    detail: str = ""


class Damaged(Exception):
    """The file says it is of a format and is not; the text says what is wrong."""


PLAIN = Found("plain")


def detect(file: BinaryIO, size: int, name: str) -> Found:
    """The format of an open file of `size` bytes called `name`. Raises `Damaged`."""
    head = file.read(HEAD)
    lowered = name.lower()
    if head.startswith(b"PK\x03\x04"):
        return _zip(file, size)
    if head.startswith(b"\x93NUMPY"):
        return _npy(head)
    if head.startswith(b"GGUF"):
        return _gguf(head)
    if lowered.endswith(".safetensors"):
        return _safetensors(file, head, size)
    if lowered.endswith(".onnx"):
        return _onnx(file, size)
    why = _pickled(head, size <= len(head)) or _pickled_and_packed(head)
    return Found("pickle", why) if why else PLAIN


# --- formats that hold no code -----------------------------------------------------------------------------------


def _safetensors(file: BinaryIO, head: bytes, size: int) -> Found:
    """https://github.com/huggingface/safetensors#format: length, JSON header, tensors without gaps."""
    if size < 10:
        raise Damaged("it is too short to be safetensors")
    (length,) = struct.unpack_from("<Q", head)
    if length > size - 8 or length > MAX_HEADER:
        raise Damaged(f"its safetensors header claims {length} bytes; the file has {size}")
    file.seek(8)
    try:
        header = json.loads(file.read(length))
        entries = [entry for key, entry in header.items() if key != "__metadata__"]
        end = max((int(entry["data_offsets"][1]) for entry in entries), default=0)
    except (ValueError, AttributeError, KeyError, IndexError, TypeError, RecursionError):
        raise Damaged("its safetensors header cannot be read") from None
    if end != size - 8 - length:
        raise Damaged(
            f"its tensors end at byte {end + 8 + length} but the file has {size}: it is cut or not safetensors"
        )
    return Found("safetensors")


def _gguf(head: bytes) -> Found:
    """https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: magic, version, tensor and key counts."""
    if len(head) < 24:
        raise Damaged("it is too short to be GGUF")
    version, tensors, keys = struct.unpack_from("<IQQ", head, 4)
    if not 1 <= version <= 99 or tensors > 1 << 24 or keys > 1 << 24:
        raise Damaged("its GGUF header cannot be read")
    return Found("gguf")


def _onnx(file: BinaryIO, size: int) -> Found:
    """A protobuf ModelProto: walk the top-level fields, https://protobuf.dev/programming-guides/encoding/."""
    position, graph = 0, False
    for _ in range(10_000):
        if position >= size:
            break
        file.seek(position)
        window = file.read(32)
        tag, at = _varint(window, 0)
        number, kind = tag >> 3, tag & 7
        value, at = _varint(window, at) if kind in (0, 2) else (0, at + {1: 8, 5: 4}.get(kind, size + 1))
        position += at + (value if kind == 2 else 0)
        graph = graph or (number == 7 and kind == 2)
        if number == 0 or position > size:
            raise Damaged("it is cut or not an ONNX model")
    if not graph:
        raise Damaged("it holds no graph: it is not an ONNX model")
    return Found("onnx")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
    raise Damaged("it is cut or not an ONNX model")


# --- the pickle family -------------------------------------------------------------------------------------------


def _pickled(head: bytes, whole: bool) -> str:
    """Why these first bytes are a pickle, or an empty text."""
    if head.startswith(b"ZF0x"):
        return "an old joblib file"
    walk = _Walk()
    walk.through(head)
    if len(head) > 2 and head[0] == 0x80 and head[1] <= 5 and walk.count > 1:
        return f"a pickle of protocol {head[1]}"
    # Protocols 0 and 1 have no mark. One that reaches no code is data; one that goes on past the head might.
    if walk.calls or (walk.names and walk.stopped):
        return "a pickle of protocol 0 or 1"
    if walk.sound and not walk.stopped and not whole and walk.count > 1:
        return "a long pickle of protocol 0 or 1"
    return ""


class _Walk:
    """Follows pickle opcodes with the depth of the stack only, so that text does not look like a pickle."""

    def __init__(self) -> None:
        self.count = 0
        self.names = self.calls = self.stopped = False
        self.sound = True
        self._depths: list[int] = [0]

    def through(self, head: bytes) -> None:
        stream = io.BytesIO(head)
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self._take(opcode, argument)
        except (ValueError, OverflowError, IndexError, struct.error):
            # What the end of the head cuts off is not wrong.
            self.sound = self.sound and stream.tell() >= len(head)

    def _take(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        before, after = opcode.stack_before, opcode.stack_after
        if opcode.name == "POP_MARK" or pickletools.markobject in before:
            if len(self._depths) < 2:
                self._wrong()
            self._depths.pop()
            before = before[: before.index(pickletools.markobject)] if pickletools.markobject in before else []
        if self._depths[-1] < len(before):
            self._wrong()
        self._depths[-1] -= len(before)
        if opcode.name == "MARK":
            self._depths.append(0)
        else:
            self._depths[-1] += len(after)
        self.count += 1
        self.stopped = opcode.name == "STOP"
        named = opcode.name in ("GLOBAL", "INST")
        if named and not _NAMES.fullmatch(str(argument)):
            self._wrong()
        self.names = self.names or named or opcode.name in _NAMING
        self.calls = self.calls or (self.names and opcode.name in _CALLING)

    def _wrong(self) -> None:
        self.sound = False
        raise ValueError


def _pickled_and_packed(head: bytes) -> str:
    """joblib and pandas pack pickles with zlib, gzip, bzip2, xz or lzma: look at the first unpacked bytes."""
    for magic, unpack in _PACKERS:
        if head.startswith(magic):
            try:
                inner = unpack(head)
            except (zlib.error, OSError, lzma.LZMAError, EOFError, ValueError):
                continue
            why = _pickled(inner, False) if inner else ""
            if why:
                return f"{why}, compressed"
    return ""


def _inflate(window: int) -> Callable[[bytes], bytes]:
    return lambda head: zlib.decompressobj(window).decompress(head, HEAD)


_PACKERS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", _inflate(31)),
    (b"\x78", _inflate(15)),
    (b"BZh", lambda head: bz2.BZ2Decompressor().decompress(head, HEAD)),
    (b"\xfd7zXZ", lambda head: lzma.LZMADecompressor(memlimit=128 << 20).decompress(head, HEAD)),
    (b"\x5d\x00\x00", lambda head: lzma.LZMADecompressor(memlimit=128 << 20).decompress(head, HEAD)),
)


def _npy(head: bytes) -> Found:
    """https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html: an array of objects is a pickle."""
    try:
        start, length = (10, struct.unpack_from("<H", head, 8)[0])
        if head[6] > 1:
            start, length = (12, struct.unpack_from("<I", head, 8)[0])
        header = ast.literal_eval(head[start : start + length].decode("latin-1").strip())
        holds_objects = _objects_in(header["descr"])
    except (struct.error, IndexError, ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        raise Damaged("its NumPy header cannot be read") from None
    return Found("pickle", "a NumPy array of Python objects") if holds_objects else PLAIN


def _objects_in(descr: object) -> bool:
    if isinstance(descr, str):
        return "O" in descr
    if isinstance(descr, list):
        return any(_objects_in(field[1]) for field in descr)
    return isinstance(descr, tuple) and _objects_in(descr[0])


# --- archives ----------------------------------------------------------------------------------------------------


def _zip(file: BinaryIO, size: int) -> Found:
    _check_directory(file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise Damaged(f"its archive has {len(members)} members; {MAX_MEMBERS} are looked at")
            return _archive(archive, [member.filename for member in members])
    except (
        zipfile.BadZipFile,
        ValueError,
        OSError,
        NotImplementedError,
        RuntimeError,
        struct.error,
        EOFError,
        zlib.error,
    ):
        raise Damaged("it is a damaged zip archive") from None


def _check_directory(file: BinaryIO, size: int) -> None:
    """Refuse a directory that is too large to read before anything reads it (APPNOTE 4.3.14 and 4.3.16)."""
    start = max(0, size - HEAD - 22)
    file.seek(start)
    tail = file.read(HEAD + 22)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        raise Damaged("it is a zip archive without its end: it was cut")
    (length,) = struct.unpack_from("<I", tail, at + 12)
    if length == 0xFFFFFFFF:
        at = tail.rfind(b"PK\x06\x06")
        if at < 0 or len(tail) - at < 56:
            raise Damaged("it is a damaged zip archive")
        (length,) = struct.unpack_from("<Q", tail, at + 40)
    if length > MAX_DIRECTORY:
        raise Damaged(f"its archive directory has {length} bytes; {MAX_DIRECTORY} are read")


def _archive(archive: zipfile.ZipFile, names: list[str]) -> Found:
    # torch looks at the folder of the first member only: with several folders, one could hide behind another.
    one_root = len({name.partition("/")[0] for name in names}) == 1
    inside = {name.partition("/")[2] for name in names}
    if one_root and {"constants.pkl", "data.pkl"} <= inside and any(name.startswith("code/") for name in inside):
        return Found("torchscript")
    if "data.pkl" not in inside and _is_export(names, inside):
        return Found("torch_export")
    for name in names:
        lowered = name.lower()
        if lowered.endswith(_PICKLE_NAMES):
            kind = "a torch file" if lowered.endswith("/data.pkl") else "an archive"
            return Found("pickle", f"{kind} with {name[:80]!r} inside")
        if lowered.endswith(_TORCH_NAMES):
            return Found("pickle", f"an archive with the torch file {name[:80]!r} inside")
        if lowered.endswith(".npy"):
            with archive.open(name) as member:
                head = member.read(HEAD)
            if head.startswith(b"\x93NUMPY") and _npy(head).format == "pickle":
                return Found("pickle", f"an archive with the NumPy array of Python objects {name[:80]!r} inside")
    return PLAIN


def _is_export(names: list[str], inside: set[str]) -> bool:
    """`torch.export.save`: an ExportedProgram as JSON, beside its weights."""
    if "serialized_exported_program.json" in names:
        return True
    return "archive_format" in inside and any(n.startswith("models/") and n.endswith(".json") for n in inside)
