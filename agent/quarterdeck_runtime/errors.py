"""The runtime's exceptions.

ServingError
├── BundleError   the bundle cannot be served: told on stderr, exit code 2
└── RequestError    400  the request is wrong; `field` says where
"""

from __future__ import annotations


class ServingError(Exception):
    """Base of the errors that have a message for people."""

    def __init__(self, detail: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


class BundleError(ServingError):
    """The bundle or its settings cannot work."""


class RequestError(ServingError):
    """A request that cannot be answered as it was sent. A handler may raise it as well."""
