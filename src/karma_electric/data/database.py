"""The SQLite file itself: opening it at the right version, transactions, and its errors in words a user can act on.

Knows nothing of what the tables mean.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from karma_electric.core.errors import (
    ArtifactError,
    BusyError,
    DataError,
    InputError,
    KarmaError,
    MissingError,
    SpaceError,
)
from karma_electric.data import migrations

WAIT_S = 5.0  # for another process that writes
_APPLICATION = 0x4B52_4D41  # "KRMA", in the file's header: an SQLite file of somebody else is not touched


class Database:
    """One open workbench file."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._has_written = False

    @classmethod
    def open(cls, path: Path, *, create: bool) -> Database:
        """Open a file, and bring an older one up to date.

        Args:
            path: the file.
            create: make it if it is not there.

        Raises:
            MissingError: it is not there.
            DataError: it is no workbench, or damaged.
            ArtifactError: a newer version has written it.
            BusyError: another process holds it.
        """
        _check_path(path, create)
        with _translated(path):
            connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
        database = cls(path, connection)
        try:
            database._bring_up_to_date(create)
            database.rows("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return database

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        with _translated(self.path):
            cursor = self._connection.cursor()
            cursor.row_factory = sqlite3.Row
            return cursor.execute(sql, values).fetchall()

    def execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Run a statement that writes; the number of rows it changed."""
        with self.transaction(), _translated(self.path):
            return self._connection.execute(sql, values).rowcount

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside, or nothing of it. One inside another belongs to the outer one."""
        if self._connection.in_transaction:
            yield
            return
        with _translated(self.path):
            self._prepare_to_write()
            self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            with _translated(self.path):
                self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close it; unless another process has it open too, all is in the one file then."""
        if self._has_written:
            # Readers with a read-only copy, and Datasette, want a file without a -wal beside it.
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self._connection.execute("PRAGMA journal_mode = DELETE").fetchall()
        self._connection.close()

    def _prepare_to_write(self) -> None:
        if not self._has_written:
            # With a write-ahead log others can read while this process writes. Not every file system can: no harm.
            with contextlib.suppress(sqlite3.OperationalError):
                self._connection.execute("PRAGMA journal_mode = WAL").fetchall()
            self._has_written = True

    def _bring_up_to_date(self, create: bool) -> None:
        if self._version(create) == migrations.VERSION:
            return
        import sqlite_utils

        with self.transaction():
            version = self._version(create)  # another process may have done it meanwhile
            tables = sqlite_utils.Database(self._connection, execute_plugins=False, recursive_triggers=False)
            with _translated(self.path):
                for step in migrations.STEPS[version:]:
                    step(tables)
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._connection.execute(f"PRAGMA user_version = {migrations.VERSION}")

    def _version(self, create: bool) -> int:
        application = int(self.rows("PRAGMA application_id")[0][0])
        version = int(self.rows("PRAGMA user_version")[0][0])
        tables = int(self.rows("SELECT count(*) FROM sqlite_master")[0][0])
        if application != _APPLICATION and (tables or version or application):
            raise DataError(
                f"{self.path} is an SQLite database, but no workbench.", "Give a workbench, or a new name, with --db."
            )
        if version > migrations.VERSION:
            raise ArtifactError(
                f"{self.path} was written by a newer version (schema {version}, this one knows {migrations.VERSION}).",
                "Upgrade karma-electric, or give another file with --db.",
            )
        if not version and not create:
            raise MissingError(f"{self.path} is empty.", _MAKE_ONE.format(path=self.path))
        return version


_MAKE_ONE = "Make one with: karma data import corpus --db {path}"


def _check_path(path: Path, create: bool) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a workbench file.", f"Give a file: --db {path / 'workbench.db'}")
    if not path.exists():
        if not create:
            raise MissingError(f"{path} does not exist.", _MAKE_ONE.format(path=path))
        if not path.absolute().parent.is_dir():
            raise MissingError(f"The folder {path.parent} does not exist.", f"Make it: mkdir -p {path.parent}")


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _in_words(path, error) from error
    except UnicodeEncodeError as error:
        raise DataError(
            f"A text holds half of a surrogate pair ({error.object[error.start]!r}), which is no character.",
            "Correct the text.",
        ) from None


def _in_words(path: Path, error: sqlite3.Error) -> KarmaError:
    # By message: Python 3.10 has no error codes.
    said = str(error)
    if "locked" in said or "busy" in said:
        return BusyError(
            f"{path} is locked by another process (waited {WAIT_S:.0f} s).",
            "Wait until it has finished, then run the same command again.",
        )
    if "readonly" in said:
        return InputError(f"{path} is read-only.", "Change its permissions, or give a copy of it with --db.")
    if "is full" in said:
        return SpaceError(f"The disk that holds {path} is full.", "Free some space and run the same command again.")
    if "unable to open" in said:
        return InputError(f"{path} cannot be opened.", "Check the permissions of the file and of its folder.")
    if "not a database" in said:
        return DataError(f"{path} is no SQLite file.", "Give a workbench, or a new name, with --db.")
    return DataError(
        f"{path} is damaged ({said}).",
        f"Save what can be read: karma data export saved.jsonl --salvage --db {path} "
        "- then: karma data import corpus saved.jsonl --db new.db",
    )
