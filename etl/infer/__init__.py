"""From a sample of files to a contract and a recipe to start from; no Spark."""

from etl.infer.contract import write_contract
from etl.infer.hand_out import exists, report_table, validate_contract, write_new
from etl.infer.recipe import write_recipe
from etl.infer.sample import Sample, sample_files
from etl.infer.table import Table, infer_table

__all__ = ["Sample", "Table", "exists", "infer_table", "report_table", "sample_files", "validate_contract", "write_contract",
           "write_new", "write_recipe"]  # fmt: skip
