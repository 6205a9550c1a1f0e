"""`make check`: contracts and recipes by themselves, every error with its place."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from check import main

from tests.etl.trips import write_recipe

ROOT = Path(__file__).resolve().parents[1]


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_what_ships_is_right_and_takes_no_engine(tmp_path):
    code = (
        "import sys; sys.argv = ['check']; sys.path.insert(0, 'scripts')\nimport check\nstatus = check.main([])\n"
        "assert not {'pyspark', 'tensorflow', 'pyarrow'} & set(sys.modules)\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "schemas/flights.yaml  flights " in done.stdout
    assert "recipes/flights.yaml  5 tables; examples from flights: " in done.stdout


def test_a_recipe_is_told_with_its_contracts(tmp_path, capsys):
    features = [{"column": "fare"}, {"aggregate": "late", "window": "1 day", "functions": ["avg", "count"]}]
    recipe = write_recipe(tmp_path, features=features)
    assert main(["--recipe", str(recipe.path)]) == 0
    told = capsys.readouterr().out
    assert "trips 1.0.0: 8 columns (1 derived); key id" in told
    assert "3 tables; examples from trips: 3 features (1 column, 2 window); split by time; no model" in told
    assert told.endswith("check: 3 contracts and 1 recipe right\n")


def test_errors_of_several_contracts_are_told_together_and_once(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    change(tmp_path / "weather.yaml", "logicalType: timestamp", "logicalType: timestmp")
    change(tmp_path / "cities.yaml", "property: repeatedKey", "property: repeatedkey")
    assert main(["--recipe", str(recipe.path), "--contract", str(tmp_path / "weather.yaml")]) == 2
    told = capsys.readouterr()
    errors = told.err.splitlines()
    assert len(errors) == 2
    assert "weather.yaml:24: schema.0.properties.2.logicalType: logical type 'timestmp' is not supported" in errors[0]
    assert "cities.yaml:24: " in errors[1]
    assert "did you mean 'repeatedKey'" in errors[1]
    assert told.out.endswith("check: 1 contract right, 2 errors\n"), "the third table's contract is right"


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"features": [{"column": "fair"}]}, r"recipe.yaml:\d+: .*table 'trips' has no column 'fair'; did you mean 'fare'"),
        ({"features": [{"column": "late"}]}, r"recipe.yaml:\d+: .*column 'late' of table 'trips' is an outcome"),
        ({"features": []}, r"recipe.yaml:\d+: examples.features"),
        ({"from": "trip"}, r"recipe.yaml:\d+: .*table 'trip' is not there; did you mean 'trips'"),
    ],
)
def test_a_plan_that_cannot_be_is_told_with_its_line(tmp_path, capsys, examples, message):
    path = write_recipe(tmp_path).path
    recipe = yaml.safe_load(path.read_text())
    recipe["examples"] |= examples
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert main(["--recipe", str(path)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_recipe_without_examples_is_one_to_ingest(tmp_path, capsys):
    path = write_recipe(tmp_path).path
    recipe = yaml.safe_load(path.read_text())
    del recipe["examples"]
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert main(["--recipe", str(path)]) == 0
    assert "no examples: it can be ingested, and no more" in capsys.readouterr().out


def test_a_missing_file_and_a_missing_contract_are_named(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    (tmp_path / "cities.yaml").unlink()
    assert main(["--recipe", str(recipe.path), "--recipe", str(tmp_path / "none.yaml")]) == 2
    assert [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines()] == [
        f"{tmp_path}/cities.yaml does not exist",
        f"{tmp_path}/none.yaml does not exist",
    ]
