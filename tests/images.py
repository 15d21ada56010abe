"""Small Docker images made without a registry, and a real registry on loopback, for every test that needs them."""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DOCKER = "/usr/bin/docker"
SOCKET = "unix:///var/run/docker.sock"
APPLETS = (
    "sh",
    "cat",
    "echo",
    "env",
    "httpd",
    "id",
    "ls",
    "mount",
    "nc",
    "sleep",
    "touch",
    "true",
    "wget",
    "kill",
    "dd",
)


def docker(*words: str, check: bool = True, host: str = SOCKET) -> str:
    """Run the docker command line and return what it printed."""
    done = subprocess.run([DOCKER, "-H", host, *words], capture_output=True, text=True, timeout=120, check=False)
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def busybox_tree() -> bytes:
    """A tar of a root file system with a static busybox and nothing else."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is not installed"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tree:
        for folder in ("bin", "tmp", "etc", "model", "www"):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tree.addfile(info)
        add_file(tree, "bin/busybox", Path(busybox).read_bytes(), 0o755)
        add_file(tree, "etc/passwd", b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n", 0o644)
        add_file(tree, "www/index.html", b"served\n", 0o644)
        for applet in APPLETS:
            info = tarfile.TarInfo(f"bin/{applet}")
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            tree.addfile(info)
    return buffer.getvalue()


def add_file(tree: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tree.addfile(info, io.BytesIO(content))


@contextmanager
def busybox_image(*changes: str, tag: str | None = None, host: str = SOCKET) -> Iterator[str]:
    """A busybox image under a tag of its own, removed at the end. `changes` are Dockerfile lines (`LABEL a=b`)."""
    tag = tag or f"quarterdeck-test/busybox:{uuid.uuid4().hex[:12]}"
    words = [DOCKER, "-H", host, "import", *(word for change in changes for word in ("--change", change)), "-", tag]
    subprocess.run(words, input=busybox_tree(), check=True, capture_output=True, timeout=120)
    try:
        yield tag
    finally:
        docker("rmi", "-f", tag, check=False, host=host)


@dataclass(frozen=True, slots=True)
class Registry:
    """A running registry; images are named `{address}/...`."""

    address: str


@contextmanager
def registry(folder: Path) -> Iterator[Registry]:
    """Debian's docker-registry on a free loopback port, its blobs under `folder`."""
    port = free_port()
    config = folder / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n"
    )
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        wait_for_port(port, process)
        yield Registry(f"127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def daemon(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A private dockerd without networking, for tests that stop or kill it: its address and its process.

    In a network name space of its own: a daemon without a bridge removes the docker0 that another one uses. Its sockets
    lie in a folder with a short name: the path of one may have 107 bytes.
    """
    short = Path(tempfile.mkdtemp(prefix="qd-"))
    address = f"unix://{short / 'docker.sock'}"
    words: Sequence[str] = (
        "unshare",
        "--net",
        "dockerd",
        f"--data-root={folder / 'data'}",
        f"--exec-root={short / 'exec'}",
        f"--pidfile={folder / 'docker.pid'}",
        "--bridge=none",
        "--iptables=false",
        "-H",
        address,
        *options,
    )
    with (folder / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        wait_for_daemon(address, process)
        yield address, process
    finally:
        if process.poll() is None:
            process.send_signal(18)  # SIGCONT, should a test have left it stopped
            process.terminate()
            process.wait(30)
        for mount in (folder / "data", short / "exec"):
            subprocess.run(["umount", "-R", "-l", str(mount)], capture_output=True, timeout=30, check=False)
        shutil.rmtree(short, ignore_errors=True)


def wait_for_daemon(address: str, process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    """Until a daemon answers."""
    deadline = time.monotonic() + seconds
    while subprocess.run([DOCKER, "-H", address, "version"], capture_output=True, timeout=30, check=False).returncode:
        assert process.poll() is None, "dockerd ended at once"
        assert time.monotonic() < deadline, "dockerd did not come up"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 15) -> None:
    """Until somebody listens on a loopback port."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, "the registry ended at once"
            assert time.monotonic() < deadline, f"nobody listens on {port}"
            time.sleep(0.05)
