"""Delta tables of the lake: made from a contract, read by name, told apart by id and version."""

from __future__ import annotations

from collections.abc import Mapping

from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from lakering.errors import SettingError, StageError
from lakering.lake import Lake
from schemas import Contract

PROVENANCE_FIELDS = [
    T.StructField("_source", T.StringType(), False),
    T.StructField("_position", T.LongType(), False),
    T.StructField("_content_hash", T.BinaryType(), False),
]


def spark_schema(contract: Contract) -> T.StructType:
    """The table's columns in the contract's order, then provenance."""
    fields = [T.StructField(c.name, T._parse_datatype_string(c.type), not c.required) for c in contract.columns]
    return T.StructType(fields + PROVENANCE_FIELDS)


def is_table(spark: SparkSession, uri: str) -> bool:
    return DeltaTable.isDeltaTable(spark, uri)


def ensure_table(spark: SparkSession, uri: str, schema: T.StructType, partition_by: tuple[str, ...],
                 properties: Mapping[str, str]) -> DeltaTable:  # fmt: skip
    """The table at a URI; made, empty, when there is none."""
    builder = DeltaTable.createIfNotExists(spark).location(uri).addColumns(schema)
    if partition_by:
        builder = builder.partitionedBy(*partition_by)
    for name, value in properties.items():
        builder = builder.property(name, value)
    return builder.execute()


def create_table(spark: SparkSession, lake: Lake, contract: Contract) -> DeltaTable:
    """The contract's table, made when it is missing, and widened by the contract's new nullable columns.

    Raises SettingError, with both sides, when the contract and the table differ in anything else."""
    uri, wanted = lake.storage.uri(*lake.table(contract.table)), spark_schema(contract)
    if not is_table(spark, uri):
        return ensure_table(spark, uri, wanted, contract.partition_by, {"delta.checkpointInterval": "20"})
    table = DeltaTable.forPath(spark, uri)
    detail = table.detail().select("partitionColumns").first()
    partitions = tuple(detail["partitionColumns"]) if detail else ()
    stored = {field.name: field for field in table.toDF().schema.fields}
    fields = {field.name: field for field in wanted.fields}
    new = [field for name, field in fields.items() if name not in stored]
    differing = [
        f"{name}: table {_shape(stored.get(name))}, contract {_shape(fields.get(name))}"
        for name in sorted({*stored, *fields})
        if not (name in fields and name not in stored and fields[name].nullable)
        and _shape(stored.get(name)) != _shape(fields.get(name))
    ]
    if partitions != contract.partition_by:
        differing.append(f"partitioned by: table {partitions}, contract {contract.partition_by}")
    if differing:
        raise SettingError(
            f"table '{contract.table}' and its contract differ, and only new nullable columns are taken up:\n  "
            + "\n  ".join(differing),
            next_step=f"change {contract.document.path}, or move the table at {uri} away and ingest again",
        )
    if new:
        columns = ", ".join(f"`{field.name}` {field.dataType.simpleString()}" for field in new)
        spark.sql(f"ALTER TABLE delta.`{uri}` ADD COLUMNS ({columns})")
        table = DeltaTable.forPath(spark, uri)
    return table


def _shape(field: T.StructField | None) -> str:
    # Delta reads a schema back as nullable where a partition column or an old writer left it so: the contract's checks
    # judge nulls before anything is written, so the type is what must agree.
    return "has none" if field is None else field.dataType.simpleString()


def read_table(spark: SparkSession, lake: Lake, contract: Contract) -> DataFrame:
    """An event or side table. Raises StageError, with the command that fills it, when it is missing."""
    uri = lake.storage.uri(*lake.table(contract.table))
    if not is_table(spark, uri):
        raise _missing(lake, contract.table)
    return spark.read.format("delta").load(uri)


def table_version(lake: Lake, table: str) -> tuple[str, int]:
    """A table's id and version, read from its log without a JVM. Raises StageError when it is missing."""
    path = lake.storage.path(*lake.table(table))
    if not lake.storage.exists(*lake.table(table), "_delta_log"):
        raise _missing(lake, table)
    from deltalake import DeltaTable as DeltaLog  # a job that only writes does without it

    log = DeltaLog(lake.storage.uri(*lake.table(table)) if not lake.storage.is_local else path, without_files=True)
    return str(log.metadata().id), log.version()


def _missing(lake: Lake, table: str) -> StageError:
    return StageError(
        f"table '{table}' is not in the lake {lake.storage.root}",
        next_step=f"spark-submit --properties-file spark-defaults.conf etl/jobs/ingest_batch.py --recipe FILE --table {table}",
    )
