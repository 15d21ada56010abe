"""The two kinds of connection to the SQLite file: the one that writes and checkpoints, and readers that cannot.

SQLite before 3.51.3 can corrupt a WAL when two connections write or checkpoint it; so nothing but `Database.write`
ever does. Knows nothing of what is stored.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, QueuePool, StaticPool
from sqlmodel import Session

from quarterdeck_agent.clock import Clock
from quarterdeck_agent.errors import AgentError, Corrupt, NoSpace
from quarterdeck_agent.failpoints import failpoint
from quarterdeck_agent.migrate import migrate

BUSY_TIMEOUT = 5.0
READERS = 4


class Database:
    """One SQLite file. `write` runs one transaction at a time; `read` runs on a snapshot and waits for no one."""

    def __init__(self, path: Path, backups: Path, clock: Clock) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        self.path = path
        self.lock = threading.RLock()
        self.writes = 0
        with _told(path):
            _bring_up_to_date(path, backups, clock)
            self._writer = _engine(lambda: _open_writer(path), StaticPool, "BEGIN IMMEDIATE")
            self._writer.connect().close()
            self._readers = _engine(lambda: _open_reader(path), QueuePool, "BEGIN", READERS)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction on the only connection that writes; durable when the block ends without an exception."""
        with self.lock, _told(self.path), Session(self._writer) as session, session.begin():
            yield session
            failpoint("store.commits")
        failpoint("store.committed")
        self.writes += 1

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One snapshot on a connection that cannot write."""
        with _told(self.path), Session(self._readers) as session:
            yield session

    def close(self) -> None:
        # The writer goes last: closing the last connection checkpoints, which is a write.
        self._readers.dispose()
        with self.lock:
            self._writer.dispose()


def _bring_up_to_date(path: Path, backups: Path, clock: Clock) -> None:
    engine = _engine(lambda: _open_writer(path, foreign_keys=False), NullPool, None)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            migrate(connection, backups, clock)
    finally:
        engine.dispose()


def _engine(
    opener: Callable[[], sqlite3.Connection],
    pool: type[StaticPool | QueuePool | NullPool],
    begin: str | None,
    size: int = 0,
) -> Engine:
    if pool is QueuePool:
        engine = create_engine("sqlite://", creator=opener, poolclass=pool, pool_size=size, max_overflow=size)
    else:
        engine = create_engine("sqlite://", creator=opener, poolclass=pool)
    if begin is not None:
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _open_writer(path: Path, *, foreign_keys: bool = True) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
    connection.execute("PRAGMA journal_size_limit = 4194304")
    return connection


def _open_reader(path: Path) -> sqlite3.Connection:
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """SQLite's errors in the agent's words."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise _translated(path, cause) from error


def _translated(path: Path, cause: BaseException | None) -> AgentError:
    # sqlite_errorcode holds extended codes: the lowest byte is the primary one.
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return NoSpace(f"the store {path} could not grow: {cause}", hint="Free disk space; nothing was changed.")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Corrupt(
            f"the store {path} is damaged: {cause}",
            hint=f"Stop the agent and put the newest file of {path.parent / 'backups'} in its place. "
            "What is running is not touched by that.",
        )
    return AgentError(f"the store {path} failed: {cause}", hint="See the agent's log; nothing was changed.")
