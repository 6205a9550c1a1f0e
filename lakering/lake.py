"""Where everything lies in a lake. Rooms meet here, on storage, and nowhere else.

tables/TABLE                          event and side tables (Delta)
quarantine/TABLE                      refused rows of a table (Delta)
progress/TABLE/ID.json                which files are in the table, one record per completed ingest
progress/TABLE/topics/TOPIC/          how far a topic is in the table: state.json, Spark's checkpoint/; batches/ (Delta)
examples/RECIPE/BUILD/                one immutable build: table/, keys/, learnt/, build.json (written last)
snapshots/RECIPE/SNAPSHOT/            manifest.json (written last) and row_groups.parquet
pins/SNAPSHOT.json                    what the cleaner must leave alone
runs/RECIPE/RUN/                      record.json, steps/, tensorboard/, checkpoints/, model/, evaluation/, profile/
"""

from __future__ import annotations

from dataclasses import dataclass

from lakering.names import validate_identifier
from lakering.storage import Storage

TABLES, QUARANTINE, PROGRESS = "tables", "quarantine", "progress"
EXAMPLES, SNAPSHOTS, PINS, RUNS = "examples", "snapshots", "pins", "runs"


@dataclass(frozen=True)
class Lake:
    """A lake, and the path components of what lies in it (to be given to ``storage``'s methods)."""

    storage: Storage

    def table(self, name: str) -> tuple[str, ...]:
        return (TABLES, name)

    def quarantine(self, name: str) -> tuple[str, ...]:
        return (QUARANTINE, name)

    def progress(self, name: str) -> tuple[str, ...]:
        return (PROGRESS, name)

    def topic(self, table: str, topic: str) -> tuple[str, ...]:
        return (*self.progress(table), "topics", topic)

    def build(self, recipe: str, build_id: str) -> tuple[str, ...]:
        return (EXAMPLES, recipe, validate_identifier(build_id, "build"))

    def snapshot(self, recipe: str, snapshot_id: str) -> tuple[str, ...]:
        return (SNAPSHOTS, recipe, validate_identifier(snapshot_id, "snapshot"))

    def run(self, recipe: str, run_id: str) -> tuple[str, ...]:
        return (RUNS, recipe, validate_identifier(run_id, "run"))

    def newest(self, *folder: str, marker: str) -> str | None:
        """The name of the newest complete thing in a folder: the one whose marker file was written last."""
        complete = []
        for name in self.storage.list(*folder):
            info = self.storage.filesystem.get_file_info(self.storage.path(*folder, name, marker))
            if info.is_file:
                complete.append((info.mtime_ns or 0, name))
        return max(complete)[1] if complete else None

    def make_newest(self, *marker: str) -> None:
        """Writes a marker again: what is asked for again, and found complete, is the newest from then on."""
        self.storage.write(self.storage.read(*marker), *marker)
