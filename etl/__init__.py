"""Spark: sources -> event tables -> example tables -> snapshots."""
