"""The jars of a Kafka broker, brought by Spark's own resolver into .venv/kafka: a folder of their own, since Spark's class
path has other versions of what they need."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from installer import PYTHON, VENV, SetupError, run

FOLDER = VENV / "kafka"
# Kafka's libraries log through SLF4J 1.7, and tell nothing without a binding.
PACKAGES = "org.apache.kafka:kafka_2.13:4.1.0,org.apache.logging.log4j:log4j-slf4j-impl:2.24.3"


def bring_jars(folder: Path = FOLDER, *, cache: Path | None = None) -> None:
    """Fills ``folder/jars`` whole or not at all. What was fetched stays in ``folder/cache``, or is taken from such a
    ``cache`` of a machine with network. Raises SetupError."""
    shutil.rmtree(folder / "jars", ignore_errors=True)
    if cache:
        shutil.copytree(cache, folder / "cache", dirs_exist_ok=True)
    # The resolver is part of a submit, so something is submitted: a class of the broker that needs most of its jars.
    command = [str(PYTHON.parent / "spark-submit"), "--master", "local[1]", "--packages", PACKAGES]
    command += ["--conf", f"spark.jars.ivy={folder}", "--class", "kafka.tools.StorageTool", "spark-internal", "random-uuid"]
    try:
        run("Bringing the Kafka broker's jars", command, PATH=f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}")
    except BaseException:  # an interrupt too: half of the jars would look like all
        shutil.rmtree(folder / "jars", ignore_errors=True)
        raise


def class_path(folder: Path = FOLDER) -> str:
    """What ``java -cp`` takes. Spark's resolver leaves Scala's own library out, which PySpark has. Raises SetupError."""
    spark = importlib.util.find_spec("pyspark")
    jars = Path(spark.origin).parent / "jars" if spark and spark.origin else folder
    scala = [str(jar) for jar in jars.glob("scala-library-2.13.*.jar")]
    if not scala or not any((folder / "jars").glob("org.apache.kafka_kafka_2.13-*.jar")):
        raise SetupError(f"the Kafka broker's jars are not in {folder}/jars; run `make setup`")
    return os.pathsep.join([f"{folder / 'jars'}/*", *scala])


if __name__ == "__main__":
    try:
        bring_jars()
    except SetupError as problem:
        sys.exit(f"set-up: {problem}")
