"""From a recipe to an example table: what is planned here runs in ``etl.transforms`` and is written by ``etl.tables``."""

from etl.examples.plan import Plan, plan_examples

__all__ = ["Plan", "plan_examples"]
