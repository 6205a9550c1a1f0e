"""A data set of another kind than the flights: JSON lines, a regression label, Parquet, contracts and a recipe alone."""

from __future__ import annotations

import datetime
import json
import random
from pathlib import Path

START = datetime.datetime(2024, 3, 1, 6, tzinfo=datetime.UTC)
STATIONS = [("harbour", 3, 40), ("market", 20, 25), ("hill", 140, None), ("park", 60, 12)]


def write_rides(folder: Path, *, num_rows: int = 4000, num_bad: int = 5) -> None:
    """Writes two files of rides and one of stations. A ride takes 4 minutes per km, more uphill, less for members."""
    source = random.Random(7)
    (folder / "rides").mkdir(parents=True)
    stations = [{"station": name, "altitude": altitude, "docks": docks} for name, altitude, docks in STATIONS]
    (folder / "stations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stations))
    lines = []
    for number in range(num_rows):
        name, altitude, _ = source.choice(STATIONS)
        distance, member = round(source.uniform(0.3, 12), 2), source.random() < 0.6
        minutes = max(1.0, 4 * distance + altitude / 20 - 3 * member + source.gauss(0, 1.5))
        row = {"ride_id": f"r{number:06d}", "started_at": (START + datetime.timedelta(minutes=3 * number)).isoformat(),
               "station": name, "member": member, "distance_km": distance,
               "temperature": None if source.random() < 0.1 else round(source.gauss(15, 5), 1), "minutes": round(minutes, 1)}  # fmt: skip
        lines.append(json.dumps(row) + "\n")
    lines += [json.dumps({"ride_id": f"bad{number}"}) + "\n" for number in range(num_bad)]
    half = len(lines) // 2
    (folder / "rides" / "a.jsonl").write_text("".join(lines[:half]))
    (folder / "rides" / "b.jsonl").write_text("".join(lines[half:]))
