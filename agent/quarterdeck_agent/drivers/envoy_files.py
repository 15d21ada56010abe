"""The files through which Envoy is configured (filesystem xDS): where they lie, and how they are replaced in one step.

Nothing is synced to disk: after a power cut the agent writes them again. What they mean is none of its business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from quarterdeck_agent.errors import GatewayError

Json = dict[str, object]

_CONFIG = "type.googleapis.com/envoy.config"
_TYPES = {
    "lds": f"{_CONFIG}.listener.v3.Listener",
    "rds": f"{_CONFIG}.route.v3.RouteConfiguration",
    "cds": f"{_CONFIG}.cluster.v3.Cluster",
    "eds": f"{_CONFIG}.endpoint.v3.ClusterLoadAssignment",
}


class ResourceFiles:
    """The files `lds`, `cds`, `rds` and one `eds-{cluster}` for each cluster, in one watched folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Make the folder, and empty files where Envoy must find some to start. What is there stays."""
        make_folder(self.folder)
        for name in ("lds", "cds"):
            if not self.text(name):
                self.write(name, "none", ())

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def source(self, name: str) -> Json:
        """The `ConfigSource` that makes Envoy read and watch the file."""
        return {"resource_api_version": "V3", "path_config_source": {"path": str(self.path(name))}}

    def write(self, name: str, version: str, resources: Iterable[Json]) -> None:
        """Replace one file. Envoy notices the rename."""
        self.restore(name, _document(name, version, resources))

    def write_if_changed(self, name: str, version: str, resources: Iterable[Json]) -> None:
        """The same, but a file that says it already is left alone."""
        text = _document(name, version, resources)
        if self.text(name) != text:
            self.restore(name, text)

    def restore(self, name: str, text: str) -> None:
        """Replace one file by a text that `text()` returned before."""
        replace(self.path(name), text)

    def text(self, name: str) -> str:
        """The file as it is; empty when it is not there."""
        try:
            return self.path(name).read_text()
        except (OSError, UnicodeDecodeError):
            return ""

    def resources(self, name: str) -> list[Json]:
        """What the file holds, without the types; nothing when it is not there or torn."""
        found = self._parsed(name).get("resources")
        if not isinstance(found, list):
            return []
        return [{key: value for key, value in item.items() if key != "@type"} for item in found]

    def version(self, name: str) -> str | None:
        found = self._parsed(name).get("version_info")
        return found if isinstance(found, str) else None

    def forget_endpoints(self, clusters: Iterable[str]) -> None:
        """Remove the endpoint files of all clusters but these."""
        kept = {self.path(f"eds-{cluster}") for cluster in clusters}
        for path in self.folder.glob("eds-*.json"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _parsed(self, name: str) -> Json:
        try:
            found = json.loads(self.text(name))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def digest(value: object) -> str:
    """A short, stable name for a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def make_folder(path: Path) -> None:
    """A folder nobody else may enter."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
    except OSError as error:
        raise GatewayError(f"{path} cannot be made: {error.strerror}") from error


def replace(path: Path, text: str) -> None:
    """Write beside the file, then rename over it: a reader sees the old text or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise GatewayError(f"{path} cannot be written: {error.strerror}", hint="free some space") from error


def _document(name: str, version: str, resources: Iterable[Json]) -> str:
    type_url = _TYPES[name.partition("-")[0]]
    typed = [{"@type": type_url, **resource} for resource in resources]
    return json.dumps({"version_info": version, "resources": typed}, sort_keys=True)
