"""A replica as a container: its configuration with hard defaults, what may not differ, what proves it ours.

Pure: values of Docker's Engine API (v1.41) in and out, nothing here talks to a daemon. Every field of a container comes
from here; nothing that a bundle says is passed on as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quarterdeck_agent.drivers import gpu_door
from quarterdeck_agent.drivers.base import ReplicaSpec, Resources, expand
from quarterdeck_agent.drivers.gpu_door import Door

Json = dict[str, Any]

NOBODY = "65534:65534"
BUNDLE = "/model"
PIDS_LIMIT = 512
TMP_SIZE = 1 << 30
SHM_SIZE = 64 << 20
VOLUME_SIZE = 1 << 30
PREFIX = "quarterdeck."
OWNER, REPLICA = PREFIX + "owner", PREFIX + "replica"
LABELS = tuple(
    PREFIX + key for key in ("owner", "replica", "deployment", "revision", "body", "version", "port", "gpus")
)
CLAIM = PREFIX + "claim"
"""What a replica with GPUs claims of each: a number of bytes, or "whole". Older agents did not write it."""
CLAIM_FORM = re.compile(r"whole|[0-9]{1,16}")


def network_name(instance: str) -> str:
    """The bridge network of one agent."""
    return f"quarterdeck-{instance[:8]}"


def container_name(replica: str) -> str:
    return f"quarterdeck-{replica}"


def network(instance: str) -> Json:
    """A bridge on which replicas cannot reach each other; the host reaches them all."""
    return {
        "Name": network_name(instance),
        "Driver": "bridge",
        "CheckDuplicate": True,
        "Options": {"com.docker.network.bridge.enable_icc": "false"},
        "Labels": {OWNER: instance},
    }


def labels(spec: ReplicaSpec, instance: str) -> dict[str, str]:
    """What a container remembers of itself."""
    values = (
        instance,
        spec.id,
        spec.deployment,
        str(spec.revision),
        spec.body,
        spec.version,
        str(spec.port),
        ",".join(spec.gpus),
    )
    claim = {CLAIM: claimed(spec.resources)} if spec.gpus else {}
    return dict(zip(LABELS, values, strict=True)) | claim


def claimed(resources: Resources) -> str:
    """The claim on each GPU as the label has it."""
    return "whole" if resources.whole_gpus or resources.vram is None else str(resources.vram)


def environment(spec: ReplicaSpec, way: Door = "nvidia") -> list[str]:
    """`KEY=value` lines. No GPU is shown by an image's own NVIDIA_VISIBLE_DEVICES=all: GPUs come by request only."""
    values = {key: fill(value, spec) for key, value in spec.env.items()}
    values["PORT"] = str(spec.port)
    values["NVIDIA_VISIBLE_DEVICES"] = gpu_door.visible(spec.gpus, way)
    return [f"{key}={value}" for key, value in values.items()]


def fill(text: str, spec: ReplicaSpec) -> str:
    return expand(text, port=spec.port, bundle=BUNDLE, name=spec.model or spec.deployment, python="python3")


def configuration(spec: ReplicaSpec, instance: str, volumes: tuple[str, ...] = (), way: Door = "nvidia") -> Json:
    """The whole request that creates the container. `volumes` are those the image declares: they become tmpfs.

    `way` is how this daemon gives GPUs.
    """
    return {
        "Image": spec.image,
        "Cmd": [fill(word, spec) for word in spec.command] or None,
        "Env": environment(spec, way),
        "User": spec.user or NOBODY,
        "Labels": labels(spec, instance),
        "Healthcheck": {"Test": ["NONE"]},
        "AttachStdin": False,
        "OpenStdin": False,
        "Tty": False,
        "HostConfig": host(spec, instance, volumes, way),
        "NetworkingConfig": {"EndpointsConfig": {network_name(instance): {}}},
    }


def host(spec: ReplicaSpec, instance: str, volumes: tuple[str, ...], way: Door = "nvidia") -> Json:
    """What the container gets of the host: as little as serving a model needs."""
    limits = spec.resources
    return {
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        "ReadonlyRootfs": not spec.writable_root,
        "NetworkMode": network_name(instance),
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Init": True,
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
        "PidsLimit": PIDS_LIMIT,
        "Memory": limits.memory or 0,
        # The same figure means: no swap.
        "MemorySwap": limits.memory or 0,
        "NanoCpus": round((limits.cpus or 0) * 1_000_000_000),
        "ShmSize": limits.shm or SHM_SIZE,
        "Tmpfs": {"/tmp": f"rw,noexec,nosuid,nodev,size={TMP_SIZE},mode=1777"},  # noqa: S108  inside the container
        "Mounts": [bundle_mount(spec), *(volume_mount(path) for path in volumes)],
        "DeviceRequests": [gpu_door.request(spec.gpus, way)] if spec.gpus else [],
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
    }


def bundle_mount(spec: ReplicaSpec) -> Json:
    return {
        "Type": "bind",
        "Source": str(spec.bundle),
        "Target": BUNDLE,
        "ReadOnly": True,
        "BindOptions": {"Propagation": "rprivate"},
    }


def volume_mount(path: str) -> Json:
    """Memory in place of an anonymous volume on the host's disk."""
    return {"Type": "tmpfs", "Target": path, "TmpfsOptions": {"SizeBytes": VOLUME_SIZE, "Mode": 0o1777}}


# --- what came out ---------------------------------------------------------------------------------------------

EXACT = (
    "CapDrop",
    "SecurityOpt",
    "ReadonlyRootfs",
    "NetworkMode",
    "IpcMode",
    "CgroupnsMode",
    "Init",
    "RestartPolicy",
    "LogConfig",
    "PidsLimit",
    "Memory",
    "MemorySwap",
    "NanoCpus",
    "ShmSize",
    "Tmpfs",
    "DeviceRequests",
    "Ulimits",
)
# Either compared elsewhere or no door to anything. Every other field of HostConfig must be "not set": each is a door to
# the host or to other containers, also those that a later Docker invents.
HARMLESS = {"ContainerIDFile", "ConsoleSize", "MaskedPaths", "ReadonlyPaths", "MemorySwappiness", "Runtime", "Mounts"}
DEFAULT_MASKED = {"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware"}


def differences(asked: Json, made: Json) -> tuple[str, ...]:
    """The fields in which the inspected container `made` is not what was asked; empty is what it must be."""
    want, have = asked["HostConfig"], made.get("HostConfig") or {}
    wrong = [f"HostConfig.{key}" for key in EXACT if normal(have.get(key)) != normal(want.get(key))]
    wrong += [f"HostConfig.{key}" for key in sorted(have.keys() - {*EXACT, *HARMLESS}) if normal(have[key])]
    if not set(have.get("MaskedPaths") or ()) >= DEFAULT_MASKED:
        wrong.append("HostConfig.MaskedPaths")
    if not have.get("ReadonlyPaths"):
        wrong.append("HostConfig.ReadonlyPaths")
    wrong += identity_differences(asked, made.get("Config") or {})
    if mounts_made(made) != mounts_asked(want):
        wrong.append("Mounts")
    if set((made.get("NetworkSettings") or {}).get("Networks") or ()) != {want["NetworkMode"]}:
        wrong.append("NetworkSettings.Networks")
    return tuple(dict.fromkeys(wrong))


def identity_differences(asked: Json, config: Json) -> list[str]:
    """Who it is and what it runs: `Config` of the inspected container."""
    wrong = [f"Config.{key}" for key in ("User", "Image") if config.get(key) != asked[key]]
    if asked["Cmd"] and config.get("Cmd") != asked["Cmd"]:
        wrong.append("Config.Cmd")
    if not set(config.get("Env") or ()) >= set(asked["Env"]):
        wrong.append("Config.Env")
    made = ours(config.get("Labels") or {})
    if made != {key: value for key, value in asked["Labels"].items() if key != CLAIM or CLAIM in made}:
        wrong.append("Config.Labels")
    if config.get("Tty") or config.get("OpenStdin"):
        wrong.append("Config.Tty")
    return wrong


def normal(value: Any) -> Any:
    """Docker writes "not set" as null, 0, "", [] or {} by turns; and fills maps inside requests with defaults."""
    if isinstance(value, Mapping):
        return {key: inner for key, each in value.items() if (inner := normal(each))}
    if isinstance(value, list | tuple):
        return [normal(each) for each in value]
    return value or None


def mounts_asked(want: Json) -> set[tuple[str, str, str, bool]]:
    return {
        (each["Type"], each.get("Source", ""), each["Target"], not each.get("ReadOnly", False))
        for each in want["Mounts"]
    }


def mounts_made(made: Json) -> set[tuple[str, str, str, bool]]:
    return {
        (each.get("Type", ""), each.get("Source", ""), each.get("Destination", ""), bool(each.get("RW")))
        for each in made.get("Mounts") or ()
        # Docker lists HostConfig.Tmpfs here in some releases; it is compared there.
        if each.get("Destination") not in (made.get("HostConfig") or {}).get("Tmpfs", {})
    }


def ours(values: Mapping[str, str]) -> dict[str, str]:
    """The labels that lie in our name space."""
    return {key: value for key, value in values.items() if key.startswith(PREFIX)}


def doubt(names: tuple[str, ...], values: Mapping[str, str], mode: str, instance: str) -> str | None:
    """Why a container with our labels cannot be proved ours; `None` when it is. `mode` is its network mode."""
    if values.get(OWNER) != instance:
        return "belongs to another agent or to nobody"
    if set(ours(values)) - {CLAIM} != set(LABELS):
        return "does not carry our labels as we write them"
    if f"/{container_name(values[REPLICA])}" not in names:
        return "has our labels under a name that is not ours"
    if mode != network_name(instance):
        return "has our labels but is not on our network"
    numbers = values[PREFIX + "revision"].isdecimal() and values[PREFIX + "port"].isdecimal()
    if not numbers or not CLAIM_FORM.fullmatch(values.get(CLAIM, "whole")):
        return "has our labels with values that we never write"
    return None
