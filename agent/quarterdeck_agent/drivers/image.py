"""From the name of an image to its digest, pulling what is absent and telling how far it has come.

Blocking: runs in the docker engine's threads. Never builds, tags or removes an image.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import docker
from docker.errors import APIError, ImageNotFound

from quarterdeck_agent.drivers.base import Progress, Report
from quarterdeck_agent.errors import EngineError

Json = dict[str, Any]

# The image of the Python runtimes is built on each host and published nowhere: whoever offers one by this name in a
# registry is a stranger, so that it is never pulled.
BUILT_HERE = "quarterdeck/runtime-python"


def resolve(client: docker.APIClient, slow: docker.APIClient, image: str, report: Report) -> str:
    """`image` by digest, present on the host. `slow` is a client whose reads may wait for a registry.

    `name@sha256:…` for what a registry knows, the image's id (`sha256:…`) for what was only ever local. A tag that
    moved in its registry is pulled again; a registry that does not answer leaves what is here.
    """
    here = find(client, image)
    if here is None:
        return pull(client, slow, image, report)
    if image.startswith("sha256:") or "@sha256:" in image:
        return image
    digest = digest_of(here, image)
    if digest is None:
        return str(here["Id"])
    moved = published_digest(slow, image)
    if moved is not None and moved != digest.partition("@")[2]:
        return pull(client, slow, image, report)
    return digest


def find(client: docker.APIClient, image: str) -> Json | None:
    try:
        found: Json = client.inspect_image(image)
    except ImageNotFound:
        return None
    return found


def split(image: str) -> tuple[str, str | None]:
    """Repository and tag; a colon before a slash is a registry's port."""
    name, _, tag = image.rpartition(":")
    return (name, tag) if name and "/" not in tag else (image, None)


def digest_of(found: Json, image: str) -> str | None:
    """The digest reference under the repository that `image` names."""
    repository = familiar(image.partition("@")[0] if "@" in image else split(image)[0])
    return next(
        (str(each) for each in found.get("RepoDigests") or () if familiar(each.partition("@")[0]) == repository), None
    )


def familiar(repository: str) -> str:
    """Docker Hub's names in the short form in which the daemon lists them."""
    for prefix in ("docker.io/library/", "index.docker.io/library/", "docker.io/", "index.docker.io/", "library/"):
        if repository.startswith(prefix):
            return repository.removeprefix(prefix)
    return repository


def published_digest(slow: docker.APIClient, image: str) -> str | None:
    """What the registry has under this tag now; `None` when it does not tell."""
    try:
        told: Json = slow.inspect_distribution(image)
    except APIError:
        return None
    return str(told["Descriptor"]["digest"])


def pull(client: docker.APIClient, slow: docker.APIClient, image: str, report: Report) -> str:
    """Pull and return the digest reference."""
    if image.startswith("sha256:"):
        raise EngineError(f"There is no image {image} on this host, and an image id cannot be pulled.", field="image")
    repository, tag = image.split("@", 1) if "@" in image else split(image)
    if familiar(repository) == BUILT_HERE:
        raise EngineError(
            f"There is no image {image} on this host. It is built here, never pulled.",
            field="image",
            hint=f"Build it: qd-agent runtime-image --tag {image}",
        )
    try:
        follow(image, slow.pull(repository, tag=tag or "latest", stream=True, decode=True), report)
    except APIError as error:
        raise refused(image, str(error.explanation or error)) from error
    here = find(client, image)
    digest = digest_of(here, image) if here else None
    if digest is None:
        raise EngineError(f"{image} was pulled but the engine does not have it by digest.", field="image")
    return digest


def refused(image: str, why: str) -> EngineError:
    return EngineError(
        f"Could not pull {image}: {why}",
        field="image",
        hint="Check the name, and that the host can reach and may read that registry (docker login).",
    )


def follow(image: str, events: Iterable[Json], report: Report) -> None:
    """Sum the layers' bytes as the daemon tells them; raises for an error inside the stream."""
    layers: dict[str, tuple[int, int]] = {}
    for event in events:
        if "error" in event:
            raise refused(image, str(event["error"]))
        detail, layer, status = event.get("progressDetail") or {}, event.get("id", ""), str(event.get("status", ""))
        if status == "Downloading" and detail.get("total"):
            layers[layer] = (int(detail.get("current", 0)), int(detail["total"]))
        elif status in ("Download complete", "Pull complete") and layer in layers:
            layers[layer] = (layers[layer][1], layers[layer][1])
        elif status == "Already exists":
            layers[layer] = (0, 0)
        else:
            continue
        total = sum(size for _, size in layers.values())
        report(Progress(f"pulling {image}", sum(done for done, _ in layers.values()), total or None))
    report(Progress(f"pulled {image}", *[sum(size for _, size in layers.values())] * 2))
