"""Runs once at set-up, by spark-submit: brings the jars through Spark's own resolver, and does on a tiny table what the
jobs do, so that the archive of loaded classes that the JVM leaves at exit holds what they will load."""

import sys
import tempfile
from pathlib import Path

from delta.tables import DeltaTable
from pyspark.sql import SparkSession, Window
from pyspark.sql import functions as F


def main() -> None:
    """A text file is parsed, written to Delta, merged, joined, aggregated and collected."""
    spark = SparkSession.builder.getOrCreate()
    with tempfile.TemporaryDirectory() as folder:
        text, table = f"{folder}/rows.csv", f"{folder}/table"
        Path(text).write_text("".join(f"{n},{n % 3},2013-01-0{n % 9 + 1}\n" for n in range(100)))
        rows = spark.read.text(text).select(F.from_csv("value", "id int, kind int, day date").alias("row"), "_metadata")
        rows = rows.select("row.*", "_metadata.file_name", F.sha2(F.to_json("row"), 256).alias("hash")).cache()
        rows.write.format("delta").partitionBy("day").save(table)
        merge = DeltaTable.forPath(spark, table).alias("t").merge(rows.alias("s"), "t.id = s.id")
        merge.whenNotMatchedInsertAll().execute()
        stored = spark.read.format("delta").load(table)
        window = Window.partitionBy("kind").orderBy("id")
        joined = stored.withColumn("n", F.row_number().over(window)).join(
            rows.select("id", F.col("hash").alias("other")), "id", "left"
        )
        joined.write.parquet(f"{folder}/parquet")
        stored.groupBy("kind").agg(F.avg("id"), F.count_distinct("day"), F.percentile_approx("id", 0.5)).toPandas()
        if stored.count() != 100:
            sys.exit("A table of 100 rows did not come back whole.")
    spark.stop()


if __name__ == "__main__":
    main()
