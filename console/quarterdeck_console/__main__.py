"""`qd`: hands over to the command line and ends the process. Imports nothing before it is known what is wanted."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line on this process's arguments and end with its exit code."""
    # Imports make many objects and no garbage: collecting at the usual pace costs a tenth of a short verb's time.
    gc.set_threshold(50_000, 20, 20)
    from quarterdeck_console.cli.main import run

    code = run(sys.argv[1:])
    # Taking every module apart again costs a short verb 20-30 ms of CPU and helps nobody: what registered itself for
    # the end is run, what was printed is written, and that is all.
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
