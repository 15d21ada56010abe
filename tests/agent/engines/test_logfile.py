"""How the log writer cuts, stamps, rotates and drops."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quarterdeck_agent.drivers import logfile
from quarterdeck_agent.drivers.logfile import Lines, LogFile, stamp

EPOCH = 1_700_000_000.25
HEAD = "2023-11-14T22:13:20.250000Z"


def writer(folder: Path, **options: int) -> LogFile:
    return LogFile(folder, now=lambda: EPOCH, **options)


def kept(folder: Path) -> str:
    return (folder / "current.log").read_text()


def test_a_stamp_is_utc_with_microseconds() -> None:
    assert stamp(EPOCH) == HEAD
    assert stamp(0.9999999) == "1970-01-01T00:00:01.000000Z"


def test_each_line_has_a_time_and_its_stream(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.write("o", b"one\ntwo\r\n\n")
    log.write("e", b"three\n", at=0.0)
    log.close()
    assert kept(tmp_path) == f"{HEAD} o one\n{HEAD} o two\n{HEAD} o \n1970-01-01T00:00:00.000000Z e three\n"


def test_invalid_utf8_is_escaped_and_valid_stays(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.write("o", b"a\xffb\n")
    log.write("o", "größe\n".encode())
    log.close()
    assert kept(tmp_path) == f"{HEAD} o a\\xffb\n{HEAD} o größe\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_come_out_whole_however_the_stream_is_cut(size: int) -> None:
    text = "first\nsecönd\n\nlong" + "x" * 50 + "é" * 30 + "\nlast"
    stream, lines, out = text.encode(), Lines(limit=40), b""
    for start in range(0, len(stream), size):
        out += lines.feed(stream[start : start + size])
    out += lines.rest()
    assert out.decode().replace("\n", "") == text.replace("\n", "")
    assert max(len(line) for line in out.split(b"\n")) <= 40
    assert out.startswith("first\nsecönd\n\n".encode())
    assert out.endswith(b"\nlast\n")


def test_a_full_file_is_rotated_and_the_oldest_dropped_with_a_marker(tmp_path: Path) -> None:
    log = writer(tmp_path, size=200, count=3)
    for number in range(30):
        log.write("o", b"line %02d\n" % number)
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.log", "2.log", "current.log"]
    assert all(path.stat().st_size <= 200 for path in tmp_path.iterdir())
    first, *rest = kept(tmp_path).splitlines()
    assert first.startswith(f"{HEAD} a dropped ")
    assert first.endswith(" bytes: log cap reached")
    assert rest[-1] == f"{HEAD} o line 29"
    text = "".join((tmp_path / name).read_text() for name in ("2.log", "1.log", "current.log"))
    order = [line.split()[-1] for line in text.splitlines() if " o " in line]
    assert order == [f"{number:02d}" for number in range(30 - len(order), 30)]


def test_one_write_larger_than_many_files_keeps_whole_lines(tmp_path: Path) -> None:
    log = writer(tmp_path, size=300, count=2)
    log.write("o", b"".join(b"%03d\n" % number for number in range(100)))
    log.close()
    for path in tmp_path.iterdir():
        assert path.stat().st_size <= 300
        assert all(len(line.split()) == 3 for line in path.read_text().splitlines() if " o " in line)
    assert kept(tmp_path).endswith("o 099\n")


def test_a_torn_last_line_is_closed_before_the_next(tmp_path: Path) -> None:
    (tmp_path / "current.log").write_text(f"{HEAD} o to")
    log = writer(tmp_path)
    log.write("o", b"next\n")
    log.close()
    assert kept(tmp_path) == f"{HEAD} o to\n{HEAD} o next\n"


def test_what_the_disk_refuses_is_counted_and_told_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, real = writer(tmp_path), os.write
    log.write("o", b"before\n")

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 5:
            return real(descriptor, data[:5])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    log.write("o", b"lost\n")
    assert log.dropped == 5
    monkeypatch.setattr(os, "write", real)
    log.write("o", b"after\n")
    log.close()
    assert kept(tmp_path) == f"{HEAD} o before\n{HEAD} a dropped 5 bytes: the disk refused them\n{HEAD} o after\n"


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "current.log").symlink_to(target)
    log = writer(folder)
    log.write("o", b"x\n")
    assert log.dropped == 2
    assert target.read_text() == "precious"


def test_it_loads_by_path_without_site_packages() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import logfile; print(len(sys.modules))"
    words = [sys.executable, "-I", "-S", "-c", code, str(Path(logfile.__file__).parent)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60
