"""Thin entry points for spark-submit. Nothing imports a job."""
