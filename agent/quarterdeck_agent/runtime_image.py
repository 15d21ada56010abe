"""Builds the Docker image of the Python runtimes on the host itself, from the agent's own interpreter and packages.

No registry and no Dockerfile: a tar of the interpreter, the chosen distributions with what they need, and the shared
libraries they load goes straight into `docker import`. Made of the same files it is there already, and is only named.
Blocking; nothing is downloaded, nothing else is changed, and an older image is never removed: revisions may need it.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import IO

import docker
import requests
from docker.errors import DockerException
from packaging.requirements import Requirement

from quarterdeck_agent.drivers import docker_socket, image
from quarterdeck_agent.drivers.base import Progress, Report
from quarterdeck_agent.errors import EngineError

DISTRIBUTION = "quarterdeck"
REPOSITORY = image.BUILT_HERE
NEEDED = ("torch", "litserve", "numpy")
ROOTS: tuple[str, ...] = (*NEEDED, "safetensors")
# What the image was made of. Not in the name space of our containers' labels, which containers would inherit.
INPUTS = "io.quarterdeck.runtime.inputs"
PYTHON = "opt/python"
SITE = "opt/site"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
LOADER_CACHE = Path("/etc/ld.so.cache")
IMPORT_DEADLINE = 900.0
REPORT_EVERY = 16 << 20
# Nothing that serves a model needs these; together they are a third of an interpreter.
LEFT_OUT = {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "site-packages", "lib2to3"}
# Headers for compilers that the image does not have.
LEFT_OUT_PATHS = ("torch/include/", "torch/share/", "torch/test/")
BYTECODE = f".{sys.implementation.cache_tag}.pyc"
# glibc loads these by name at run time, so that no ldd shows them: users, DNS, the unwinder of a dying thread.
BY_NAME = ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2", "libgcc_s.so.1")
USERS = "root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"
GROUPS = "root:x:0:\nnogroup:x:65534:\n"
HOSTS = "hosts: files dns\npasswd: files\ngroup: files\n"


def default_tag() -> str:
    """The image's name for this release of the agent."""
    try:
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        version = "0.1.0"
    return f"{REPOSITORY}:{version}"


def build(client_url: str, tag: str, report: Report, *, rebuild: bool = False) -> str:
    """Build the image, name it `tag` and return its id; one made of the same files is taken unless `rebuild`.

    `report` is called while it is built, from a thread of this function's own. Raises `EngineError` when something that
    belongs into it is not installed, or the engine does not take it.
    """
    refuse_without_packages()
    files = dict(interpreter_files()) | dict(package_files())
    inputs = digest(files)
    repository, name = image.split(tag)
    client = connect(client_url)
    try:
        same = [] if rebuild else client.images(filters={"label": f"{INPUTS}={inputs}"})
        if same:
            client.tag(same[0]["Id"], repository, name or "latest", force=True)
        else:
            put(client, repository, name or "latest", inputs, files, report)
        return str(client.inspect_image(tag)["Id"])
    except (DockerException, requests.RequestException) as error:
        raise refused(str(error)) from error
    finally:
        client.close()


def connect(url: str) -> docker.APIClient:
    try:
        docker_socket.get(url, "/version")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise EngineError(
            f"No Docker Engine answers at {url}: {error}",
            hint="Is the daemon running, and may this user open its socket?",
        ) from error
    return docker.APIClient(base_url=url, version="auto", timeout=IMPORT_DEADLINE)


def refused(why: str) -> EngineError:
    return EngineError(
        f"Docker did not take the runtime image: {why}", field="image", hint="It needs about 2 GB of Docker's disk."
    )


def put(
    client: docker.APIClient, repository: str, name: str, inputs: str, files: dict[str, Path], report: Report
) -> None:
    """Stream the tree into `docker import`."""
    read, write = os.pipe()
    trouble: list[BaseException] = []
    writer = threading.Thread(target=pour, args=(write, files, report, trouble), name="runtime-image", daemon=True)
    with os.fdopen(read, "rb") as stream:
        writer.start()
        data = iter(lambda: stream.read(1 << 20), b"")
        told = client.import_image_from_data(data, repository, name, list(changes(inputs)))
    writer.join(10)
    if trouble:
        raise EngineError(f"The runtime image could not be put together: {trouble[0]}") from trouble[0]
    # The daemon answers 200 before it unpacks; what goes wrong then stands in the body, one JSON object a line.
    errors = [event["error"] for line in str(told).splitlines() if "error" in (event := json.loads(line))]
    if errors:
        raise refused(errors[0])


def refuse_without_packages() -> None:
    """An image without them would be built well and serve nothing."""
    absent = [name for name in NEEDED if not is_installed(name)]
    if absent:
        raise EngineError(
            f"The runtime image is made of this interpreter's packages, and it has no {', no '.join(absent)}.",
            field="image",
            hint="Install quarterdeck[torch] where the agent is (pip install 'quarterdeck[torch]'), "
            "then build it: qd-agent runtime-image.",
        )


def is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def digest(files: dict[str, Path]) -> str:
    """What the image is made of, by names, sizes and times; compiled modules come and go and say nothing."""
    seen = hashlib.sha256("\n".join((USERS, GROUPS, HOSTS, *changes(""))).encode())
    # The loader's cache stands for the shared libraries: it is written whenever they change.
    for name, path in sorted((files | {"": LOADER_CACHE}).items()):
        if path.suffix != ".pyc" and path.exists():
            facts = path.stat()
            seen.update(f"{name}\0{facts.st_size} {facts.st_mtime_ns} {facts.st_mode}\n".encode())
    return seen.hexdigest()


def changes(inputs: str) -> Iterator[str]:
    """The image's configuration as Dockerfile lines."""
    yield f"LABEL {INPUTS}={inputs}"
    yield f"ENV PATH=/{PYTHON}/bin:/bin"
    yield f"ENV PYTHONPATH=/{SITE}"
    yield f"ENV LD_LIBRARY_PATH=/{PYTHON}/lib"
    yield f"ENV SSL_CERT_FILE={CERTIFICATES}"
    yield "ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8 HOME=/tmp"
    yield "WORKDIR /model"


def pour(descriptor: int, files: dict[str, Path], report: Report, trouble: list[BaseException]) -> None:
    """Write the tar into a pipe; the reader sees its end also when something goes wrong here."""
    with os.fdopen(descriptor, "wb") as sink:
        try:
            write_tree(sink, files, report)
        except BrokenPipeError:
            # Docker hung up and says why itself.
            return
        except (OSError, metadata.PackageNotFoundError, subprocess.SubprocessError, tarfile.TarError) as error:
            trouble.append(error)


def write_tree(sink: IO[bytes], files: dict[str, Path], report: Report) -> None:
    """The whole root file system as a tar stream, the same bytes for the same interpreter and packages."""
    files = dict(files)
    for name, path in library_files(files.values()):
        files.setdefault(name, path)
    total = sum(path.stat().st_size for path in files.values())
    done = told = 0
    with tarfile.open(fileobj=sink, mode="w|", bufsize=1 << 20) as tree:
        for folder, mode in (("tmp", 0o1777), ("model", 0o755), ("etc", 0o755), ("bin", 0o755), ("proc", 0o755)):
            tree.addfile(entry(folder, tarfile.DIRTYPE, mode))
        for name, text in (("etc/passwd", USERS), ("etc/group", GROUPS), ("etc/nsswitch.conf", HOSTS)):
            info = entry(name, tarfile.REGTYPE, 0o644)
            info.size = len(text)
            tree.addfile(info, io.BytesIO(text.encode()))
        link = entry(f"{PYTHON}/bin/python", tarfile.SYMTYPE, 0o777)
        link.linkname = "python3"
        tree.addfile(link)
        for name, path in sorted(files.items()):
            add(tree, name, path)
            done += path.stat().st_size
            if done - told >= REPORT_EVERY or done == total:
                told = done
                report(Progress("building the runtime image", done, total))


def entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = kind, mode, 0
    return info


def add(tree: tarfile.TarFile, name: str, path: Path) -> None:
    info = entry(name, tarfile.REGTYPE, 0o755 if os.access(path, os.X_OK) else 0o644)
    facts = path.stat()
    # A compiled module holds its source's time and size, and is compiled anew when they differ.
    info.size, info.mtime = facts.st_size, int(facts.st_mtime)
    with path.open("rb") as file:
        tree.addfile(info, file)


# --- what goes in ----------------------------------------------------------------------------------------------


def interpreter_files() -> Iterator[tuple[str, Path]]:
    """The base interpreter and its standard library. A virtual environment's own binary only points there."""
    base = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    yield f"{PYTHON}/bin/python3", Path(sys.executable).resolve()
    library = Path(os.__file__).parent
    for path in walk(library):
        yield f"{PYTHON}/lib/{version}/{path.relative_to(library)}", path
    for path in sorted((base / "lib").glob("libpython*.so.*")):
        yield f"{PYTHON}/lib/{path.name}", path


def package_files() -> Iterator[tuple[str, Path]]:
    """Every file of the chosen distributions and of all they require, and our own runtime package."""
    for distribution in closure(ROOTS):
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            # Scripts and man pages lie outside the packages' folder.
            if ".." not in file.parts and not str(file).startswith(LEFT_OUT_PATHS) and is_wanted(path):
                yield f"{SITE}/{file}", path
    runtime = Path(__file__).resolve().parent.parent / "quarterdeck_runtime"
    for path in walk(runtime):
        yield f"{SITE}/quarterdeck_runtime/{path.relative_to(runtime)}", path


def closure(names: Iterable[str]) -> list[metadata.Distribution]:
    """The installed distributions of these names with everything they require here; absent ones are left out."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return [found[name] for name in sorted(found)]


def walk(folder: Path) -> Iterator[Path]:
    """The regular files of a folder and its links to files, less what no server needs."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT and not name.startswith("config-"))
        for name in sorted(names):
            path = Path(place) / name
            if is_wanted(path):
                yield path


def is_wanted(path: Path) -> bool:
    """No static libraries, and of the compiled modules those that this interpreter loads."""
    return path.is_file() and path.suffix != ".a" and (path.suffix != ".pyc" or path.name.endswith(BYTECODE))


def library_files(files: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """The host's shared libraries that the interpreter and the packages load, each under its own path."""
    binaries = [path for path in files if is_elf(path)]
    inside = {path.name for path in binaries}
    needed: set[Path] = set()
    for start in range(0, len(binaries), 64):
        needed |= ldd(binaries[start : start + 64])
    folders = {path.parent for path in needed}
    needed |= {folder / name for folder in folders for name in BY_NAME if (folder / name).exists()}
    for path in sorted(needed):
        if path.name not in inside:
            yield str(path).lstrip("/"), path
    if CERTIFICATES.exists():
        yield str(CERTIFICATES).lstrip("/"), CERTIFICATES


def ldd(binaries: list[Path]) -> set[Path]:
    """What the dynamic loader would load for these files, as absolute paths of the host."""
    done = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, timeout=120, check=False)
    return {Path(found) for found in re.findall(r"(?:=> |^\t)(/\S+) \(0x", done.stdout, re.MULTILINE)}


@functools.cache
def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"
