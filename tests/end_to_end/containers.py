"""Docker for end-to-end tests: an image with this interpreter, and a private daemon that the host can reach into."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from quarterdeck_agent import runtime_image
from tests import images

EVERYWHERE = {"HOST": "0.0.0.0"}
"""What the trivial bundle's server needs in its environment to be reached from outside its container."""


@contextlib.contextmanager
def python_image(host: str = images.SOCKET) -> Iterator[str]:
    """An image with this interpreter and its standard library only, removed at the end."""
    tag = f"quarterdeck-test/python:{os.getpid()}"
    roots, runtime_image.ROOTS = runtime_image.ROOTS, ()
    try:
        runtime_image.build(host, tag, lambda _: None)
    finally:
        runtime_image.ROOTS = roots
    try:
        yield tag
    finally:
        images.docker("rmi", "-f", tag, check=False, host=host)


class Daemon:
    """A dockerd on a bridge and addresses of its own, beside the host's daemon and without touching the firewall."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.address = f"unix://{folder / 'docker.sock'}"
        self._bridge = f"qdt{os.getpid()}"
        self._net = f"10.213.{os.getpid() % 250}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Daemon:
        for words in (
            ("link", "add", self._bridge, "type", "bridge"),
            ("addr", "add", f"{self._net}.1/26", "dev", self._bridge),
            ("link", "set", self._bridge, "up"),
        ):
            subprocess.run(["ip", *words], check=True, capture_output=True)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self) -> None:
        """Start the daemon, for the first time or again after `kill`."""
        (self.folder / "docker.pid").unlink(missing_ok=True)
        options = (
            f"--data-root={self.folder / 'data'}",
            f"--exec-root={self.folder / 'exec'}",
            f"--pidfile={self.folder / 'docker.pid'}",
            f"--bridge={self._bridge}",
            f"--default-address-pool=base={self._net}.64/26,size=28",
            *("--iptables=false", "--ip-forward=false", "--ip-masq=false", "--userland-proxy=false"),
        )
        with (self.folder / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(["dockerd", *options, "-H", self.address], stdout=log, stderr=log)
        images.wait_for_daemon(self.address, self._process)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(30)
        for mount in ("data", "exec"):
            subprocess.run(["umount", "-R", "-l", str(self.folder / mount)], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)
