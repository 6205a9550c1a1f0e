"""The only place that builds a SparkSession."""

from __future__ import annotations

from pyspark.sql import SparkSession

from lakering.errors import SettingError
from lakering.storage import StorageSettings

DELTA = "io.delta.sql.DeltaSparkSessionExtension"


def spark_session(name: str, storage: StorageSettings | None = None) -> SparkSession:
    """The session of this job, as it was submitted. Settings of the storage are added; nothing else is set here.

    Raises SettingError when the job was submitted without the project's ``spark-defaults.conf``."""
    builder = SparkSession.builder.appName(f"lakering {name}")
    for key, value in (storage.for_spark() if storage else {}).items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    if DELTA not in (spark.conf.get("spark.sql.extensions", "") or ""):
        spark.stop()
        raise SettingError(
            "Spark runs without Delta's extension, so the project's settings were not read",
            next_step="submit with --properties-file spark-defaults.conf (plain Python: set SPARK_CONF_DIR)",
        )
    return spark
