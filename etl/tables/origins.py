"""What a table's commits tell of where their rows came from."""

from __future__ import annotations

import json
from typing import Any

from etl.tables.delta import has_log, open_log, read_commits
from lakering.lake import Lake


def read_origins(lake: Lake, table: str, after: int | None) -> list[dict[str, Any]]:
    """What ``Batch.metadata`` left in a table's commits, oldest first: in those after a version, or with None in all that the
    log still tells of."""
    if not has_log(lake, lake.table(table)):
        return []
    if after is None:
        infos = reversed(open_log(lake, lake.table(table)).history())
    else:
        infos = (a["commitInfo"] for actions in read_commits(lake, table, after) for a in actions if "commitInfo" in a)
    found = []
    for info in infos:
        try:
            origin = json.loads(info.get("userMetadata") or "null")
        except ValueError:  # another tool's
            continue
        if isinstance(origin, dict) and "batch" in origin:
            found.append(origin)
    return found
