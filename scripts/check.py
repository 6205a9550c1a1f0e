"""Checks contracts and recipes by themselves: no lake is read, and neither Spark nor TensorFlow is started.

    make check RECIPE=recipes/flights.yaml
    make check CONTRACT=schemas/flights.yaml
    make check                                   all of recipes/ and schemas/

Of a recipe: its keys, every contract that it names, and the plan of its examples: names that exist, features that see no
outcome too early, two features of one name. What takes Spark (the types of expressions) is checked by `build_examples
--dry-run`, what takes TensorFlow (the model's own options) by `train --dry-run`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from lakering.errors import LakeringError

ROOT = Path(__file__).resolve().parents[1]


class Check:
    """Everything that is found, so that one run tells of all contracts and recipes."""

    def __init__(self) -> None:
        self.errors: list[LakeringError] = []
        self.lines: dict[str, list[str]] = {"contracts": [], "recipes": []}
        self._seen: set[Path] = set()

    def passes(self, work: Callable[..., object], *given: object) -> bool:
        """Whether some work passes; its error is kept, unless the same was found before."""
        try:
            work(*given)
        except LakeringError as error:
            if str(error) not in map(str, self.errors):
                self.errors.append(error)
            return False
        return True

    def contract(self, path: Path) -> None:
        from schemas import read_contract

        if path.resolve() in self._seen:
            return
        self._seen.add(path.resolve())
        contract = read_contract(path)
        derived = len(contract.derived_columns)
        parts = [f"{len(contract.columns)} columns" + (f" ({derived} derived)" if derived else "")]
        parts.append(f"key {', '.join(contract.key)}" if contract.key else "no key")
        if contract.partition_by:
            parts.append(f"partitioned by {', '.join(contract.partition_by)}")
        self.lines["contracts"].append(f"{_shown(path)}  {contract.table} {contract.version}: {'; '.join(parts)}")

    def recipe(self, path: Path) -> None:
        from etl.examples import plan_examples
        from recipes import read_recipe

        recipe = read_recipe(path)
        tables = recipe.settings.tables
        right = [self.passes(self.contract, Path(recipe.resolve(table.contract))) for table in tables.values()]
        right += [self.passes(recipe.contract, name) for name in tables]
        if not all(right):
            return
        parts = [_count(len(tables), "tables")]
        if recipe.settings.examples is None:
            parts.append("no examples: it can be ingested, and no more")
        else:
            plan = plan_examples(recipe)
            kinds = ", ".join(f"{count} {how}" for how, count in Counter(feature.how for feature in plan.features).items())
            parts.append(f"examples from {plan.main.table}: {len(plan.features)} features ({kinds})")
            parts.append(f"split by {plan.examples.split.by}")
        parts.append(f"model {recipe.settings.model.name}" if recipe.settings.model else "no model")
        self.lines["recipes"].append(f"{_shown(path)}  {'; '.join(parts)}")


def _shown(path: Path) -> str:
    """A path as short as it can be told from here."""
    absolute = path.resolve()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


def _count(number: int, things: str) -> str:
    return f"{number} {things if number != 1 else things.removesuffix('s')}"


def check(recipes: Iterable[Path], contracts: Iterable[Path]) -> int:
    """Checks, prints, and returns the exit status: 0, or that of the first error (see ``lakering.errors``)."""
    found = Check()
    for path in contracts:
        found.passes(found.contract, path)
    for path in recipes:
        found.passes(found.recipe, path)
    for what, lines in found.lines.items():
        if lines:
            print("\n  ".join([what, *lines]))
    for error in found.errors:
        print(f"error: {error}", file=sys.stderr)
    good = " and ".join(_count(len(lines), what) for what, lines in found.lines.items() if lines) or "nothing"
    print(f"check: {good} right" + (f", {_count(len(found.errors), 'errors')}" if found.errors else ""))
    return found.errors[0].exit_status if found.errors else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for what in ("recipe", "contract"):
        parser.add_argument(f"--{what}", action="append", default=[], type=Path, metavar="FILE",
                            help=f"a {what} to check; may be given again")  # fmt: skip
    args = parser.parse_args(argv)
    if not args.recipe and not args.contract:
        args.recipe, args.contract = sorted(ROOT.glob("recipes/*.yaml")), sorted(ROOT.glob("schemas/*.yaml"))
    return check(args.recipe, args.contract)


if __name__ == "__main__":
    sys.exit(main())
