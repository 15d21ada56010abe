"""The file: one writer, readers that cannot write, migrations with a backup, damage and full disks said clearly."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from sqlmodel import SQLModel

from quarterdeck_agent import migrate
from quarterdeck_agent.database import Database
from quarterdeck_agent.errors import AgentError, Corrupt, NoSpace, SettingsError
from quarterdeck_agent.store import Store

from .making import HandClock, deploy, push, version


def opened(folder: Path) -> Store:
    return Store.open(folder / "store.sqlite", folder / "backups", HandClock())


def sql(path: Path, statement: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def test_the_tables_are_those_of_the_migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    opened(tmp_path / "new").close()
    with monkeypatch.context() as first:
        first.setattr(migrate.migrate, "__kwdefaults__", {"head": "0001", "scripts": migrate.SCRIPTS})
        opened(tmp_path).close()
    opened(tmp_path).close()
    engine = create_engine(f"sqlite:///{tmp_path / 'store.sqlite'}", poolclass=NullPool)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), SQLModel.metadata) == []
    engine.dispose()
    assert shape(tmp_path / "new" / "store.sqlite") == shape(tmp_path / "store.sqlite")


def shape(path: Path) -> dict[str, object]:
    """Every table with its columns, keys and indexes, as SQLite has them."""
    tables = [str(name) for (name,) in sql(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {
        table: {
            what: sorted(repr(row[1:]) for row in sql(path, f"PRAGMA {what}('{table}')"))
            for what in ("table_info", "foreign_key_list", "index_list")
        }
        for table in tables
    }


def test_the_file_is_private_and_durable(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert (tmp_path / "store.sqlite").stat().st_mode & 0o777 == 0o600
    with store._database.write() as session:
        names = ("synchronous", "foreign_keys", "journal_mode", "busy_timeout")
        pragma = {name: session.connection().execute(text(f"PRAGMA {name}")).scalar() for name in names}
    assert pragma == {"synchronous": 2, "foreign_keys": 1, "journal_mode": "wal", "busy_timeout": 5000}
    store.close()
    assert {path.name for path in tmp_path.iterdir()} == {"store.sqlite"}


def test_a_reader_cannot_write_or_checkpoint(tmp_path: Path) -> None:
    database = Database(tmp_path / "store.sqlite", tmp_path / "backups", HandClock())
    with database.read() as session:
        assert session.connection().execute(text("PRAGMA wal_autocheckpoint")).scalar() == 0
        assert session.connection().execute(text("PRAGMA query_only")).scalar() == 1
    with pytest.raises(AgentError, match="readonly"), database.read() as session:
        session.connection().execute(text("DELETE FROM operations"))
    database.close()


def test_a_reader_does_not_wait_for_a_writer(store: Store) -> None:
    deploy(store, "A", id="before")
    with store._database.write():
        assert store.operation("before").id == "before"


def test_a_store_that_is_up_to_date_opens_without_alembic(tmp_path: Path) -> None:
    opened(tmp_path).close()
    code = (
        "import sys; from pathlib import Path; from quarterdeck_agent.store import Store; "
        "from quarterdeck_agent.clock import SystemClock; folder = Path(sys.argv[1]); "
        "Store.open(folder / 'store.sqlite', folder / 'backups', SystemClock()).close(); "
        "sys.exit(any(name.partition('.')[0] == 'alembic' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
    assert not (tmp_path / "backups").exists()


NEWER = """
import sqlalchemy as sa
from alembic import op
revision = "9999"
down_revision = "{head}"
def upgrade():
    op.add_column("versions", sa.Column("signature", sa.String()))
    {more}
"""


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The migrations of a newer Quarterdeck, which the store uses from now on."""
    scripts = tmp_path / "scripts"
    shutil.copytree(migrate.SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions/9999_newer.py").write_text(NEWER.format(head=migrate.HEAD, more="pass"))
    opened(tmp_path).close()
    monkeypatch.setattr(migrate.migrate, "__kwdefaults__", {"head": "9999", "scripts": scripts})
    return scripts / "versions/9999_newer.py"


@pytest.mark.usefixtures("newer")
def test_an_older_store_is_backed_up_and_brought_up_to_date(tmp_path: Path) -> None:
    sql(
        tmp_path / "store.sqlite",
        "INSERT INTO deployments (name, generation, last_number, last_operation, removing, removed) "
        "VALUES ('x', 1, 1, '', 0, 1)",
    )
    opened(tmp_path).close()
    assert sql(tmp_path / "store.sqlite", "SELECT version_num FROM alembic_version") == [("9999",)]
    (backup,) = (tmp_path / "backups").iterdir()
    assert sql(backup, "SELECT version_num, name FROM alembic_version, deployments") == [(migrate.HEAD, "x")]
    assert backup.stat().st_mode & 0o777 == 0o600
    opened(tmp_path).close()
    assert len(list((tmp_path / "backups").iterdir())) == 1


def test_a_store_without_peaks_of_gpu_memory_keeps_its_bodies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(migrate.migrate, "__kwdefaults__", {"head": "0001", "scripts": migrate.SCRIPTS})
        Database(tmp_path / "store.sqlite", tmp_path / "backups", HandClock()).close()
    sql(
        tmp_path / "store.sqlite",
        "INSERT INTO deployments (name, generation, last_number, last_operation, removing, removed) "
        "VALUES ('digits', 1, 1, '', 0, 1)",
    )
    sql(tmp_path / "store.sqlite", "INSERT INTO bodies VALUES ('digits', 'A', 1, '[]')")
    opened(tmp_path).close()
    assert sql(tmp_path / "store.sqlite", "SELECT body, passed, gpu_memory_peak FROM bodies") == [("A", 1, None)]
    (backup,) = (tmp_path / "backups").iterdir()
    assert sql(backup, "SELECT version_num FROM alembic_version") == [("0001",)]


@pytest.mark.usefixtures("newer")
def test_seven_backups_are_kept(tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    backups.mkdir()
    for number in range(9):
        (backups / f"store-2025010{number}T000000.000000-schema-0001.sqlite").touch()
    opened(tmp_path).close()
    names = sorted(path.name for path in backups.iterdir())
    assert len(names) == 7 and names[-1].startswith("store-2026") and names[0].startswith("store-20250103")


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, newer: Path) -> None:
    newer.write_text(NEWER.format(head=migrate.HEAD, more='op.execute("INSERT INTO nowhere VALUES (1)")'))
    with pytest.raises(AgentError, match="nowhere") as caught:
        opened(tmp_path)
    assert "a backup is at" in str(caught.value.hint)
    assert sql(tmp_path / "store.sqlite", "SELECT version_num FROM alembic_version") == [(migrate.HEAD,)]
    assert not any(column[1] == "signature" for column in sql(tmp_path / "store.sqlite", "PRAGMA table_info(versions)"))


def test_a_store_of_a_newer_quarterdeck_is_refused_untouched(tmp_path: Path) -> None:
    opened(tmp_path).close()
    sql(tmp_path / "store.sqlite", "UPDATE alembic_version SET version_num = '0099'")
    before = (tmp_path / "store.sqlite").read_bytes()
    with pytest.raises(SettingsError, match="newer Quarterdeck") as caught:
        opened(tmp_path)
    assert "Install the newer Quarterdeck again" in str(caught.value.hint)
    assert (tmp_path / "store.sqlite").read_bytes() == before


def test_a_damaged_file_is_refused_with_the_way_back(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"this is not a database" * 100)
    with pytest.raises(Corrupt) as caught:
        opened(tmp_path)
    assert "backups" in str(caught.value.hint)


def test_tables_of_something_else_are_not_touched(tmp_path: Path) -> None:
    sql(tmp_path / "store.sqlite", "CREATE TABLE photos (id)")
    with pytest.raises(Corrupt, match="photos"):
        opened(tmp_path)


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.agent.store.making import deploy
from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.store import Store
folder = Path(sys.argv[1])
store = Store.open(folder / "store.sqlite", folder / "backups", SystemClock())
for number in range(100_000):
    print(deploy(store, str(number)).revision, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[3])
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), root], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = 0
    deadline = time.monotonic() + 60
    while acknowledged < 50 and time.monotonic() < deadline:
        acknowledged = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    said = writer.stdout.read().split("\n")[:-1]
    acknowledged = int(said[-1]) if said else acknowledged
    writer.wait(10)
    writer.stdout.close()
    store = opened(tmp_path)
    assert store.revisions("digits")[0].number >= acknowledged >= 50
    assert sql(tmp_path / "store.sqlite", "PRAGMA integrity_check") == [("ok",)]
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs to fill needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"this machine does not let root mount a tmpfs: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_and_loses_nothing(small_disk: Path) -> None:
    store = opened(small_disk)
    deploy(store, "A", id="kept")
    with pytest.raises(NoSpace) as caught:
        store.add_version(version(), os.urandom(2 << 20), push(id="lost"))
    assert "nothing was changed" in str(caught.value.hint)
    assert [operation.id for operation in store.operations(10)] == ["kept"]
    assert deploy(store, "B").revision == 2
    store.close()
