"""`qd push`: send a bundle to hosts as an immutable version."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quarterdeck_console.cli.call import Call, run, verb

if TYPE_CHECKING:
    from quarterdeck_console.bundle import Bundle
    from quarterdeck_console.config import Host
    from quarterdeck_console.errors import ConsoleError
    from quarterdeck_console.operations import PushProgress


@verb(
    short_help="Send a bundle to a host as an immutable version.",
    epilog="""
    qd push ./digits-v2
    qd push ./digits-v2 --host 'gpu-*'
    qd push ./legacy --allow-pickle    # loading a pickle runs its author's code; recorded with the version
    """,
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option("--allow-pickle", is_flag=True, help="Admit files of the pickle family; recorded with the version.")
def command(call: Call, folder: Path, allow_pickle: bool) -> int:
    """Send a bundle, a folder with model.toml and the model's files, to a host.

    Only what the host does not have travels. After a cut it goes on where it was; the same command again does too.
    """
    return run(_push(call, folder, allow_pickle))


async def _push(call: Call, folder: Path, allow_pickle: bool) -> int:
    from quarterdeck_console import fleet
    from quarterdeck_console.cli.envelope import plain
    from quarterdeck_console.errors import exit_code

    hosts = call.targets()
    package = await _read(call, folder, allow_pickle)
    done: dict[str, PushProgress] = {}
    errors: dict[str, ConsoleError] = {}
    async with contextlib.aclosing(fleet.merge([_one(host, package, errors) for host in hosts])) as events:
        async for progress in events:
            if progress.version is not None and progress.host is not None:
                done[progress.host] = progress
            _tell(call, progress, len(hosts) > 1)
    failed = [errors[host.name] for host in hosts if host.name in errors]
    if call.out.json:
        found = [plain(done[host.name].version, host.name) for host in hosts if host.name in done]
        return call.out.items("VersionList", found, failed)
    for host in hosts:
        if host.name in done:
            call.out.line(_outcome(done[host.name]))
    if done and not failed:
        label = next(iter(done.values())).label
        call.out.note(f"next: qd deploy {label}")
    call.out.errors(failed)
    return exit_code(failed, len(done))


async def _read(call: Call, folder: Path, allow_pickle: bool) -> Bundle:
    from quarterdeck_console import operations, views
    from quarterdeck_console.bundle import Bundle

    async with contextlib.aclosing(operations.read_bundle(folder, allow_pickle)) as events:
        async for event in events:
            if isinstance(event, Bundle):
                return event
            call.out.progress(f"reading {folder}: {views.used(event.done, event.total)}")
    raise AssertionError("reading a bundle ends with it")


async def _one(host: Host, package: Bundle, errors: dict[str, ConsoleError]) -> AsyncGenerator[PushProgress, None]:
    from quarterdeck_console import operations
    from quarterdeck_console.errors import ConsoleError

    try:
        async with contextlib.aclosing(operations.push(host, package)) as events:
            async for progress in events:
                yield progress
    except ConsoleError as error:
        error.host = error.host or host.name
        errors[host.name] = error


def _tell(call: Call, progress: PushProgress, many: bool) -> None:
    from quarterdeck_console import views

    prefix = f"{progress.host}: " if many else ""
    if progress.stage == "retrying":
        call.out.note(f"{prefix}{progress.detail}; going on from {views.used(progress.done, progress.total)}")
    elif progress.stage == "sending":
        call.out.progress(f"{prefix}sending {progress.label}: {views.used(progress.done, progress.total)}")


def _outcome(progress: PushProgress) -> str:
    from quarterdeck_console import views

    assert progress.version is not None
    version = progress.version
    words = f"{version.label} on {progress.host}: {views.short(version.id)}"
    words += f", {views.size(version.size)} in {views.count(len(version.files), 'file')}"
    return f"{words}, was there already" if progress.already else f"{words}, {views.size(progress.sent)} sent"
