"""The catalogue as an SQLite file that several processes may write at once."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from qdeploy.catalogue.entry import Entry, read_entry, read_tags, record_file, write_tags
from qdeploy.errors import OutputError, UsageError
from qdeploy.home import home

VARIABLE = "QDEPLOY_CATALOGUE"
SCHEMA = 1
WAIT_S = 30.0
"""How long a process waits for others that write."""

TABLES = """
CREATE TABLE runs (
    path TEXT PRIMARY KEY, identity TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
    model TEXT NOT NULL, created TEXT NOT NULL, summary TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE tags (
    path TEXT NOT NULL REFERENCES runs ON DELETE CASCADE, tag TEXT NOT NULL, PRIMARY KEY (path, tag)
) WITHOUT ROWID;
CREATE INDEX runs_by_time ON runs (created);
CREATE INDEX runs_by_identity ON runs (identity);
"""
COLUMNS = ("path", "identity", "kind", "name", "model", "created", "summary")


def catalogue_file() -> Path:
    """`$QDEPLOY_CATALOGUE`, else `runs.sqlite3` in `home()`."""
    own = os.environ.get(VARIABLE)
    return Path(own).expanduser() if own else home() / "runs.sqlite3"


@dataclass(frozen=True)
class Filter:
    """Which entries are wanted; what is None or empty does not matter.

    Attributes:
        model: part of the model's name or of the path, in any case.
        since: ISO 8601, UTC.
        tags: all of them.
    """

    kind: str | None = None
    model: str | None = None
    since: str | None = None
    tags: Sequence[str] = ()


class Catalogue:
    """The open file; a context manager that closes it. It is made where it is not there.

    Raises:
        UsageError: it was written by a newer version.
        OutputError: it cannot be opened; inside the context also: read or written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or catalogue_file()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise self._trouble(error) from error
        try:
            self._open()
        except BaseException as error:
            self._db.close()
            if isinstance(error, sqlite3.Error):
                raise self._trouble(error) from error
            raise

    def _trouble(self, error: Exception) -> OutputError:
        return OutputError(
            f"The catalogue {self.path} cannot be used: {error}. Name another file in {VARIABLE}, or move "
            "this one away: `qdeploy runs scan FOLDER` makes it again from the folders."
        )

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA foreign_keys = ON")
        # The lock is taken before looking, so that of two processes one makes the tables.
        with _Transaction(self._db):
            [version] = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA:
                raise UsageError(
                    f"{self.path} is a catalogue of schema {version}; this qdeploy knows {SCHEMA}. "
                    f"Update qdeploy, or name another file in {VARIABLE}."
                )
            if version == 0:
                for statement in filter(str.strip, TABLES.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA}")

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        self._db.close()
        if isinstance(error, sqlite3.Error):
            raise self._trouble(error) from error

    def add(self, entries: Iterable[Entry]) -> None:
        """Enter runs, each in the place of what was known of its path; one that has moved keeps one entry."""
        with _Transaction(self._db):
            for entry in entries:
                for moved in self._vanished(entry.identity):
                    self._db.execute("DELETE FROM runs WHERE path = ?", (moved,))
                self._db.execute("DELETE FROM runs WHERE path = ?", (str(entry.path),))
                row = (str(entry.path), *(getattr(entry, column) for column in COLUMNS[1:]))
                self._db.execute(f"INSERT INTO runs VALUES ({', '.join('?' * len(row))})", row)
                tags = [(str(entry.path), tag) for tag in entry.tags]
                self._db.executemany("INSERT INTO tags VALUES (?, ?)", tags)

    def find(self, wanted: Filter = Filter()) -> list[Entry]:
        """The entries that are wanted, the newest first."""
        where, values = _conditions(wanted)
        query = f"SELECT {', '.join(COLUMNS)} FROM runs WHERE {where} ORDER BY created DESC, path"
        return [self._entry(row) for row in self._db.execute(query, values).fetchall()]

    def tag(self, folder: Path, added: Iterable[str], removed: Iterable[str]) -> Entry:
        """Change the tags of a run, in its folder and here.

        Raises:
            UsageError: the folder is not there, or holds no run.
            OutputError: the folder cannot be written.
        """
        with _Transaction(self._db):
            if not record_file(folder):
                raise UsageError(f"{folder} holds no run any more. `qdeploy runs scan` its new place first.")
            write_tags(folder, tuple(sorted({*read_tags(folder), *added} - set(removed))))
        [entry] = filter(None, [read_entry(folder)])
        self.add([entry])
        return entry

    def remove(self, paths: Iterable[Path]) -> None:
        """Forget runs; their folders are left alone."""
        with _Transaction(self._db):
            self._db.executemany("DELETE FROM runs WHERE path = ?", [(str(path),) for path in paths])

    def _entry(self, row: Sequence[str]) -> Entry:
        tags = self._db.execute("SELECT tag FROM tags WHERE path = ? ORDER BY tag", (row[0],)).fetchall()
        fields = dict(zip(COLUMNS[1:], row[1:], strict=True))
        return Entry(path=Path(row[0]), tags=tuple(tag for [tag] in tags), **fields)

    def _vanished(self, identity: str) -> list[str]:
        """Paths of entries that were this very run and are not there any more."""
        rows = self._db.execute("SELECT path FROM runs WHERE identity = ?", (identity,)).fetchall()
        return [path for [path] in rows if not Path(path).is_dir()]


class _Transaction:
    """All or nothing, with the write lock held from the start, so that nothing read is stale."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _conditions(wanted: Filter) -> tuple[str, list[str]]:
    found: list[tuple[str, str]] = []
    if wanted.kind:
        found.append(("kind = ?", wanted.kind))
    if wanted.since:
        found.append(("created >= ?", wanted.since))
    found += [("path IN (SELECT path FROM tags WHERE tag = ?)", tag) for tag in wanted.tags]
    values = [value for _, value in found]
    conditions = [condition for condition, _ in found]
    if wanted.model:
        conditions.append("(instr(lower(model), ?) OR instr(lower(path), ?))")
        values += [wanted.model.lower()] * 2
    return " AND ".join(conditions) or "1", values
