"""How a bundle becomes a version: the request is checked, missing bytes are told, and once all are there the version
is written with the operation that brought it. Bytes themselves travel through `blobs.py`; nothing here deploys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quarterdeck_agent.blobs import Blobs
from quarterdeck_agent.bundle import ModelConfig, canonical, check_files, parse, version_id
from quarterdeck_agent.catalogue import Catalogue
from quarterdeck_agent.clock import Clock
from quarterdeck_agent.errors import Conflict, NotFound
from quarterdeck_agent.protocol import ManifestFile, Operation, OperationState, PushPlan, PushRequest, Version
from quarterdeck_agent.staging import with_golden
from quarterdeck_agent.store import NewOperation, Store

CARD_MAX = 256 * 2**10
GOLDEN_MAX = 16 * 2**20


@dataclass(frozen=True, slots=True)
class _Bundle:
    """A push request that was found right."""

    files: tuple[ManifestFile, ...]
    model: ModelConfig
    manifest: bytes
    id: str


@dataclass(frozen=True, slots=True)
class Pushes:
    """Plans and commits pushes, and removes versions. Every method may block on the disk: call it in a thread.

    `written` is called after every change that was written.
    """

    store: Store
    blobs: Blobs
    catalogue: Catalogue
    clock: Clock
    written: Callable[[], None]

    def plan(self, request: PushRequest) -> PushPlan:
        """What is still to be sent. Raises `InvalidInput`, `NotFound` (no such runtime), `Conflict` (label taken)."""
        bundle = self._checked(request)
        there = self._there(bundle)
        # Also of a version that is there: pushing it again is how damaged bytes come back.
        missing = self.blobs.missing(bundle.files)
        return PushPlan(bundle.id, bundle.model.label, missing, None if missing else there)

    def commit(self, request: PushRequest, by: str, operation: str) -> Version:
        """The version of this bundle, made now or before. Raises as `plan`, and `Conflict` while bytes are missing."""
        bundle = self._checked(request)
        there = self._there(bundle)
        if missing := self.blobs.missing(bundle.files):
            raise Conflict(
                f"{len(missing)} of the files' blobs are not here whole",
                field="files",
                hint="Ask POST /v1/pushes what is missing, send it, and ask again.",
            )
        if there is not None:
            return there
        version = self._version(request, bundle, by)
        now = version.created_at
        push = Operation(
            id=operation,
            kind="push",
            target=version.label,
            by=by,
            at=now,
            state=OperationState.SUCCEEDED,
            summary=f"push {version.label}",
            finished_at=now,
        )
        written = self.store.add_version(version, bundle.manifest, push)
        self.written()
        return written

    def remove(self, reference: str, by: str, operation: str) -> None:
        """Forget a version and free the bytes that no other needs. Raises `NotFound`, `Conflict` while it is in use."""
        version = self.store.version(reference)
        removal = NewOperation(operation, "remove-version", version.label, by, f"remove version {version.label}")
        self.store.remove_version(version.id, removal)
        kept = {file.sha256 for other in self.store.versions() for file in other.files}
        self.blobs.unstage(version.id)
        self.blobs.free({file.sha256 for file in version.files} - kept)
        self.written()

    def _checked(self, request: PushRequest) -> _Bundle:
        files = check_files(request.files)
        model = parse(request.config, files)
        self.catalogue.get(model.runtime).check(model)
        manifest = canonical(files, request.config)
        return _Bundle(files, model, manifest, version_id(manifest))

    def _there(self, bundle: _Bundle) -> Version | None:
        """The version if it exists; said before any byte travels: a label that names other bytes."""
        for reference in (bundle.id, bundle.model.label):
            try:
                found = self.store.version(reference)
            except NotFound:
                continue
            if found.id == bundle.id:
                return found
            raise Conflict(
                f"{found.label} names version {found.id[:12]} already, not {bundle.id[:12]}",
                field="config.version",
                hint="A label names one content for ever: push the changed bundle under a new version.",
            )
        return None

    def _version(self, request: PushRequest, bundle: _Bundle, by: str) -> Version:
        model = bundle.model
        digests = {file.path: file.sha256 for file in bundle.files}
        formats = self.blobs.formats(bundle.files, allow_pickle=request.allow_pickle)
        with_golden(model, lambda path: self.blobs.read(digests[path], GOLDEN_MAX))
        card = self.blobs.read(digests[model.card], CARD_MAX).decode(errors="replace") if model.card else None
        return Version(
            id=bundle.id,
            label=model.label,
            name=model.name,
            runtime=model.runtime,
            size=sum(file.size for file in bundle.files),
            files=bundle.files,
            created_at=self.clock.wall(),
            by=by,
            config=request.config,
            pickle_allowed=request.allow_pickle,
            card=card,
            formats=formats,
        )
