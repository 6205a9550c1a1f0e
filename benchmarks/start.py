"""How long a job keeps a person waiting before Spark works for them, beyond what Spark itself needs.

Seconds from the launch of `ingest_batch` on a file with a header and no rows to its first Spark job, less the same for
a script that makes a bare session (same settings, same packages, launched in turn). The moment of the first Spark job is
read from Spark's own event log, so that nothing in the job takes part in measuring it. `ours` is the median of the
differences, `peer` the bare script's median, `limit` the second that a job may take.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from spark_conf import write_conf_dir  # noqa: E402
from stage_process import stage_environment  # noqa: E402

LIMIT_S = 1.0
HEADER = "carrier,name\n"
BARE = """
from pyspark.sql import SparkSession
SparkSession.builder.getOrCreate().read.text({path!r}).collect()
"""


def first_job_seconds(arguments: list[str], *, folder: Path, environment: dict[str, str]) -> float:
    """Seconds from launching spark-submit to the first job in its event log."""
    events = Path(tempfile.mkdtemp(prefix="events-", dir=folder))
    logged = f"spark.eventLog.enabled true\nspark.eventLog.compress false\nspark.eventLog.dir {events.as_uri()}"
    conf = write_conf_dir(events / "conf", extra=f"{logged}\nspark.eventLog.rolling.enabled false")
    command = ["spark-submit", "--properties-file", str(conf), "--master", "local[2]", *arguments]
    launched = time.time()
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(command)} ended with status {result.returncode}:\n{result.stderr[-3000:]}")
    for file in events.glob("*local-*"):
        for line in file.read_text().splitlines():
            event = json.loads(line)
            if event["Event"] == "SparkListenerJobStart":
                return float(event["Submission Time"]) / 1000 - launched
    sys.exit(f"{' '.join(command)} started no Spark job, so there is nothing to measure.")


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description="Seconds that a job adds to a session's start.")
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    ours, peer = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "airlines.csv").write_text(HEADER)
        (folder / "bare.py").write_text(BARE.format(path=str(folder / "airlines.csv")))
        environment = {**stage_environment(), "DATA": name}
        job = ["etl/jobs/ingest_batch.py", "--recipe", "recipes/flights.yaml", "--table", "airlines"]
        for number in range(repeats):
            lake = ["--lake", str(folder / f"lake-{number}")]
            ours.append(first_job_seconds([*job, *lake], folder=folder, environment=environment))
            peer.append(first_job_seconds([str(folder / "bare.py")], folder=folder, environment=environment))
            print(f"{number + 1} of {repeats}: job {ours[-1]:.2f} s, bare {peer[-1]:.2f} s", file=sys.stderr)
    added = statistics.median(mine - bare for mine, bare in zip(ours, peer, strict=True))
    bare_s = statistics.median(peer)
    figure = {"name": "start", "ours": added, "peer": bare_s, "limit": LIMIT_S}
    figure |= {"ratio_peer": added / bare_s, "ratio_limit": added / LIMIT_S, "unit": "s", "repeats": repeats}
    print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in figure.items()}))


if __name__ == "__main__":
    os.environ.pop("SPARK_CONF_DIR", None)
    main()
