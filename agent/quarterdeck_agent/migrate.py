"""Brings a database to the schema this code knows, with a backup before each change, in one transaction.

A database that is up to date is recognised by one query, and an empty one gets its tables as they are defined now.
Alembic, which costs the agent 11 MiB for as long as it runs, is imported only to change tables. A newer database is
refused.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from quarterdeck_agent.clock import Clock
from quarterdeck_agent.errors import AgentError, Corrupt, SettingsError
from quarterdeck_agent.tables import VersionRow

HEAD = "0004"
SCRIPTS = Path(__file__).parent / "migrations"
KEEP_BACKUPS = 7

log = logging.getLogger(__name__)


def migrate(
    connection: Connection, backups: Path, clock: Clock, *, head: str = HEAD, scripts: Path = SCRIPTS
) -> Path | None:
    """Upgrade to `head` and return the backup taken before, `None` where there was nothing to lose or to do.

    `connection` must be in autocommit mode and the only one. Raises `SettingsError` for a database newer than this
    code, `AgentError` when a migration fails (the database is then as it was).
    """
    current = _current(connection)
    if current == head:
        return None
    fresh = current is None and (head, scripts) == (HEAD, SCRIPTS)
    upgrade = _create if fresh else _upgrade(current, head, scripts, backups)
    backup = _backup(connection, backups, current, clock) if current is not None else None
    connection.execute(text("BEGIN IMMEDIATE"))
    try:
        upgrade(connection)
        connection.execute(text("COMMIT"))
    except (SQLAlchemyError, sqlite3.Error) as error:
        connection.execute(text("ROLLBACK"))
        raise AgentError(
            f"the database could not be brought from schema {current} to {head}: {error}",
            hint=f"Nothing was changed. Free disk space and start again; a backup is at {backup}.",
        ) from error
    log.info("database brought from schema %s to %s, backup %s", current, head, backup)
    return backup


def _current(connection: Connection) -> str | None:
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return found
    if tables:
        raise Corrupt(
            f"the database holds tables ({', '.join(sorted(tables)[:5])}) but no schema number",
            hint="It is not a store of Quarterdeck, or it was damaged: restore a file of the folder backups.",
        )
    return None


def _create(connection: Connection) -> None:
    """All tables at once, as every migration together would leave them; a test compares the two."""
    VersionRow.metadata.create_all(connection)
    connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})


def _upgrade(current: str | None, head: str, scripts: Path, backups: Path) -> Callable[[Connection], None]:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        raise SettingsError(
            f"the database has schema {current}, written by a newer Quarterdeck; this one knows up to {head}",
            hint=f"Install the newer Quarterdeck again, or restore a backup of schema {head} from {backups}.",
        )

    def run(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, head)

    return run


def _backup(connection: Connection, backups: Path, current: str, clock: Clock) -> Path:
    backups.mkdir(mode=0o700, parents=True, exist_ok=True)
    stamp = clock.wall().strftime("%Y%m%dT%H%M%S.%f")
    path = backups / f"store-{stamp}-schema-{current}.sqlite"
    connection.execute(text("VACUUM INTO :path"), {"path": str(path)})
    path.chmod(0o600)
    for old in sorted(backups.glob("store-*.sqlite"))[:-KEEP_BACKUPS]:
        old.unlink()
    return path
