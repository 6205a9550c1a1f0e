"""The only place that reads and writes Delta."""

from etl.tables.compaction import SmallFiles
from etl.tables.delta import create_table, has_log, read_state, read_table, table_id, table_version
from etl.tables.lock import table_lock
from etl.tables.origins import read_origins
from etl.tables.progress import append_progress, read_progress
from etl.tables.quarantine import has_quarantine, mark_replayed, read_quarantine, write_quarantine
from etl.tables.write import Batch, Counts, Survey, foresee_rows, survey_rows, write_rows

__all__ = [
    "Batch",
    "Counts",
    "SmallFiles",
    "Survey",
    "append_progress",
    "create_table",
    "foresee_rows",
    "has_log",
    "has_quarantine",
    "mark_replayed",
    "read_origins",
    "read_progress",
    "read_quarantine",
    "read_state",
    "read_table",
    "survey_rows",
    "table_id",
    "table_lock",
    "table_version",
    "write_quarantine",
    "write_rows",
]
