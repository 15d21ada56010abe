"""Runs the benchmarks named on the command line, or all; prints their table and writes `bench-results/results.json`.

The exit code is 0 when every bound was met, 1 when one was not or a benchmark failed, 2 for an unknown name.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.figures import Figure, LeftOut, table

NAMES = ("commands", "gateway", "rollback", "deploy", "push", "idle", "console", "console_8h", "tui_logs", "gpus")
RESULTS = Path(__file__).parents[2] / "bench-results" / "results.json"


def main(names: Sequence[str]) -> int:
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"no benchmark is called {', '.join(unknown)}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    began, load = time.monotonic(), os.getloadavg()[0]
    figures: list[Figure] = []
    left_out: list[LeftOut] = []
    for name in names or NAMES:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        result = _measured(name)
        if isinstance(result, LeftOut):
            left_out.append(result)
        else:
            figures.extend(result)
    machine = f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    print(table(figures, left_out))
    print(f"{machine}; load {load:.1f} at the start; {time.monotonic() - began:.0f} s")
    _write(figures, left_out, machine, load)
    return 1 if left_out or any(figure.met is False for figure in figures) else 0


def _measured(name: str) -> Sequence[Figure] | LeftOut:
    module = importlib.import_module(f"tests.benchmarks.{name}")
    try:
        # A short path: the sockets below it must fit into the 107 bytes that the kernel takes.
        with tempfile.TemporaryDirectory(prefix="qdb-", ignore_cleanup_errors=True) as folder:
            found: Sequence[Figure] | LeftOut = module.measure(Path(folder))
            return found
    except Exception as error:
        traceback.print_exc()
        return LeftOut(name, f"it failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _write(figures: Sequence[Figure], left_out: Sequence[LeftOut], machine: str, load: float) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    document = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "load_at_start": load,
        "figures": [{**asdict(figure), "met": figure.met} for figure in figures],
        "left_out": [asdict(each) for each in left_out],
    }
    RESULTS.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
