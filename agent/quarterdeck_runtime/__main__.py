"""`python -m quarterdeck_runtime --bundle DIR --port N --name NAME`: serve one bundle until told to end.

Exit codes: 0 after SIGTERM or SIGINT, 1 when the model fails to load, 2 when the bundle or the command line is wrong.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path

from quarterdeck_runtime import threads
from quarterdeck_runtime.bundle import read
from quarterdeck_runtime.errors import BundleError

GRACE = 30
# Longer than any gateway keeps an idle connection: the gateway is always the one to close it, so that no request
# meets a connection that is just being closed.
KEEP_ALIVE = 24 * 3600


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal. Returns only when the bundle cannot be served."""
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    options = _options(arguments)
    count = threads.limit()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        bundle = read(options.bundle.resolve())
    except BundleError as error:
        print(f"the bundle cannot be served: {error.detail}", file=sys.stderr)  # noqa: T201
        return 2
    # Imported late: their thread pools are sized by the environment set above.
    import uvicorn

    from quarterdeck_runtime.serving import build

    logging.getLogger("litserve").setLevel(logging.ERROR)
    server = build(bundle, options.name or bundle.name, count, began)
    server.start_worker()
    uvicorn.Server(
        uvicorn.Config(
            server.app,
            host=options.host,
            port=options.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACE,
        )
    ).run()
    _end(0, None)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m quarterdeck_runtime", description="Serve one model.")
    parser.add_argument("--bundle", type=Path, required=True, help="the folder with model.toml")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, required=True, help="the port to listen on")
    parser.add_argument("--name", default="", help="the name in /v2/models/NAME (default: the model's own)")
    return parser.parse_args(arguments)


def _end(number: int, _: object) -> None:
    """Leave at once: the model's thread may sit in a call that nothing interrupts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
