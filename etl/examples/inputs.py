"""What a build is made from, and the name that follows from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from etl.examples.plan import Plan
from lakering.names import code_version, fingerprint

CODE = ("etl", "schemas", "recipes", "lakering")


def build_inputs(plan: Plan, versions: dict[str, tuple[str, int]]) -> dict[str, Any]:
    """Everything that decides what a build holds; ``versions`` are the tables' ids and versions."""
    contracts = {name: [contract.fingerprint, contract.event_time] for name, contract in plan.contracts.items()}
    return {
        "recipe": plan.recipe.name,
        "tables": {name: list(version) for name, version in sorted(versions.items())},
        "contracts": contracts,
        "examples": plan.recipe.section("examples"),
        "code": code_version(*CODE),
    }


def name_build(inputs: dict[str, Any], is_taken: Callable[[str], bool], *, new: bool) -> str:
    """The build's id: a hash of its inputs, with a number behind it when another one was asked for."""
    name = fingerprint(inputs)
    if not new or not is_taken(name):
        return name
    number = 2
    while is_taken(f"{name}-{number}"):
        number += 1
    return f"{name}-{number}"
