"""Contracts and recipes as hands may leave them: each is read, or refused by an error that names its file; nothing else happens."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl.examples import plan_examples
from lakering.documents import read_document
from lakering.errors import LakeringError, SettingError
from recipes import Recipe, read_recipe
from schemas import Contract, read_contract
from tests.test_documents import CONTRACT, RECIPE

ROOT = Path(__file__).resolve().parents[1]
#: A document of a few pages that takes longer (of one core) is a way to hold a machine up.
MOST_SECONDS = 2
FUZZ = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

CONTRACTS = [CONTRACT, *((ROOT / name).read_text() for name in
             ("schemas/airlines.yaml", "schemas/planes.yaml", "schemas/weather.yaml", "tests/rides/rides.yaml"))]  # fmt: skip
RECIPES = [RECIPE, (ROOT / "tests/rides/recipe.yaml").read_text().replace("${RIDES}", "${RIDES:-rides}"),
           (ROOT / "recipes/flights.yaml").read_text()]  # fmt: skip

ODD_VALUES: list[Any] = [
    None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**40, 10**400, -(2**63), 1e-320, "", " ", "\n", "x" * 5000, "7" * 5000,
    "../../etc/passwd", "${env:HOME}", "${NOT_SET_ANYWHERE}", "${A:-${B}}", "${", "'; DROP TABLE trips; --", '"', "\\", "`", "a\0b",
    "\ud83d", "\u202etxt", "é\u0301", "ſ", "\ufeff", "😀", "=", "<<", "on", "1_0", "0o17", "2024-02-30", "v3.", "v3.9.9",
    "reflect('java.lang.System', 'exit')", "(" * 900, "-" * 900 + "1", "case when", "1 +", "a.b.c", "*", "select 1", "x -> x", "cast(x as map<int,int>)",
    "at - interval 2 years", "1 day", "999999999 weeks", "9" * 9 + " weeks", "< 9999-12-31", "< 0000-01-01", "< 2024-02-30", "[a-z", "(a+)+$", "(?P<x>y)", "x{99999999999}",
    "decimal(39,2)", "decimal(1,2)", "array<array<int>>", "utf-16", "hex", "idna", "UTC", "GMT+1", "yyyy'", "\udc80",
    [], {}, [[]], [None], {"a": {}}, {"": 1}, list(range(2000)), {str(n): n for n in range(500)},
]  # fmt: skip
ODD_KEYS = ["", "Name", "nmae", "../x", "\0", "on", "1", "<<", "=", "é", "x" * 300, "${X}", "columns", "properties", "value"]
ODD_TEXTS = [b"&a ", b"*a", b"!!python/object/apply:os.system ['x']", b"!x ", b"\xff", b"\0", b"\t", b"'", b'"', b"{", b"}", b"[",
             b"]", b": ", b":", b"\n", b"\r", b"\n- ", b"| ", b">", b"%YAML 9.9\n", b"---\n", b"...\n", b"${", b"\xef\xbb\xbf", b"<<: ",
             b"? ", b"\xc2\x85", b"\xe2\x80\xa8", b"#", b" #", b"1e999", b"0x_", b"0b2", b"1:60", b'"\\U00110000"', b'"\\ud83d"', b"@", b"`",
             b"[" * 3000, b"{a: " * 2000, b"- " * 2000, b"~", b"9" * 5000, b"\xf0\x9f\x98\x80", b"\x1b[31m"]  # fmt: skip


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(value: Any) -> bytes:
    return yaml.dump(value, Dumper=_Plain, sort_keys=False).encode()


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a document but itself."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(value[key], (*at, key))


def at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


class _Words(yaml.SafeLoader):
    """`on` is a word and a date a text, as in the project's own documents."""


_Words.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if first not in "oOyYnN"
}


def plain(text: str) -> Any:
    return yaml.load(text, _Words)


@st.composite
def changed_values(draw: st.DrawFn, texts: list[str]) -> bytes:
    """A right document, one to three of whose values were dropped, retyped, renamed, nested, doubled or confused."""
    value = copy.deepcopy(plain(draw(st.sampled_from(texts))))
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(value))
        if not known:
            break
        place = draw(st.sampled_from(known))
        above, key = at(value, place[:-1]), place[-1]
        how = draw(st.sampled_from(["drop", "retype", "retype", "rename", "nest", "double", "confuse", "confuse"]))
        if how == "drop":
            del above[key]
        elif how == "retype":
            above[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
        elif how == "rename" and isinstance(above, dict):
            name = draw(st.sampled_from([*ODD_KEYS, *(str(place[-1]) for place in known)]))
            above[name] = above.pop(key)
        elif how == "nest":
            above[key] = draw(st.sampled_from([[above[key]], {"x": above[key]}, {key: above[key]}, [[above[key]]]]))
        elif how == "double" and isinstance(above, list):
            above.insert(key, copy.deepcopy(above[key]))
        else:
            above[key] = copy.deepcopy(at(value, draw(st.sampled_from(known))))
    return dump(value)


@st.composite
def changed_texts(draw: st.DrawFn, texts: list[str]) -> bytes:
    """A right document, cut, or with something put in, taken out or repeated, one to three times."""
    text = draw(st.sampled_from(texts)).encode()
    for _ in range(draw(st.integers(1, 3))):
        first, last = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        last = min(last, first + 200)
        piece = draw(st.sampled_from([*ODD_TEXTS, b"", text[first:last], None]))
        text = text[:first] if piece is None else text[:first] + piece + text[draw(st.sampled_from([first, last])) :]
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the recipes find their contracts."""
    made = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(ROOT / "schemas", made / "schemas", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copytree(ROOT / "tests/rides", made / "recipes", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (made / "recipes/trips.yaml").write_text(CONTRACT)
    return made / "recipes"


def fate(read: Callable[[], Any], *names: str) -> Any:
    """What was read, or None where it was refused. Any error but ours, and one that names none of the files, fails the test."""
    started, found, message = time.process_time(), None, ""
    try:
        found = read()
    except LakeringError as error:
        message = str(error)
    assert time.process_time() - started < MOST_SECONDS
    assert found is not None or any(name in message for name in names)
    return found


def contract_is_read_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "fuzz.yaml"
    path.write_bytes(content)
    contract: Contract | None = fate(lambda: read_contract(path), "fuzz.yaml")
    if contract is None:
        return
    assert contract.columns
    path.write_bytes(dump(contract.document.value))
    assert read_contract(path) == contract, "written by a machine it says the same"


def recipe_is_read_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "fuzz.yaml"
    path.write_bytes(content)
    recipe: Recipe | None = fate(lambda: read_recipe(path), "fuzz.yaml")
    if recipe is None:
        return
    if recipe.settings.examples is not None:
        contracts = [recipe.resolve(table.contract) for table in recipe.settings.tables.values()]
        fate(lambda: plan_examples(recipe), "fuzz.yaml", *contracts)
    written = dump(recipe.document.value)
    if b"${" not in written:  # what was filled in may look like a variable again
        path.write_bytes(written)
        assert read_recipe(path).settings == recipe.settings, "written by a machine it says the same"


@settings(FUZZ, max_examples=150)
@given(content=changed_values(CONTRACTS))
def test_a_contract_with_changed_values_is_read_or_refused(folder, content):
    contract_is_read_or_refused(folder, content)


@settings(FUZZ, max_examples=150)
@given(content=changed_texts(CONTRACTS))
def test_a_contract_with_changed_text_is_read_or_refused(folder, content):
    contract_is_read_or_refused(folder, content)


@settings(FUZZ, max_examples=150)
@given(content=changed_values(RECIPES))
def test_a_recipe_with_changed_values_is_read_or_refused(folder, content):
    recipe_is_read_or_refused(folder, content)


@settings(FUZZ, max_examples=150)
@given(content=changed_texts(RECIPES))
def test_a_recipe_with_changed_text_is_read_or_refused(folder, content):
    recipe_is_read_or_refused(folder, content)


HEAVY = [
    "[" * 1_000_000,
    "[" * 3000 + CONTRACT,
    "{a: " * 3000 + CONTRACT,
    "- " * 3000,
    "".join(" " * depth + "a:\n" for depth in range(500)),
]


@pytest.mark.parametrize("text", HEAVY, ids=["brackets", "brackets first", "braces", "lists", "keys"])
def test_a_document_nested_for_ever_is_refused_before_it_holds_up_its_reader(folder, text):
    path = folder / "fuzz.yaml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(SettingError, match=r"fuzz\.yaml:.*nested more than 100 deep"):
        read_contract(path)
    assert time.process_time() - started < MOST_SECONDS


@pytest.mark.parametrize(
    ("count", "derived"), [(60, "c{0} + c{1}"), (900, "c{0} + 1")], ids=["each of the two before", "in a long row"]
)
def test_columns_that_are_derived_of_one_another_are_followed_once_each(folder, count, derived):
    columns: list[dict[str, Any]] = [{"name": f"c{n}", "logicalType": "integer", "primaryKey": True} for n in (0, 1)]
    columns += [{"name": f"c{n}", "logicalType": "integer", "partitioned": n == count - 1,
                 "customProperties": [{"property": "derived", "value": derived.format(n - 1, n - 2)}]} for n in range(2, count)]  # fmt: skip
    value = plain(CONTRACT)
    value["schema"] = [{"name": "trips", "properties": columns}]
    path = folder / "fuzz.yaml"
    path.write_bytes(dump(value))
    contract = read_contract(path)
    assert contract.partition_by == (f"c{count - 1}",)
    assert not contract.is_outcome(f"c{count - 1}")


def test_an_expression_too_deep_for_its_parser_is_refused_with_its_line(folder):
    path = folder / "fuzz.yaml"
    path.write_text(CONTRACT.replace("fare > 10", "a." * 1000 + "b"))
    with pytest.raises(SettingError, match=r"fuzz\.yaml:19: .*derived: expression 'a\.a\..*cannot be read"):
        read_contract(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("learning_rate", ".inf", "finite"), ("weight_decay", "1e400", "finite"), ("learning_rate", ".nan", "finite"),
     ("seed", "9223372036854775808", "64 bits"), ("epochs", "1" * 40, "64 bits"), ("epochs", "0", "greater than or equal to 1")],
)  # fmt: skip
def test_a_number_out_of_bounds_is_refused_by_its_key(folder, key, value, message):
    path = folder / "fuzz.yaml"
    path.write_text(RECIPE.replace("epochs: 3", f"{key}: {value}"))
    with pytest.raises(SettingError, match=rf"fuzz\.yaml:14: training\.{key}: .*{message}"):
        read_recipe(path)


def test_a_window_longer_than_time_is_refused(folder):
    path = folder / "fuzz.yaml"
    path.write_text(RECIPE.replace("3 hours", "999999999 weeks"))
    with pytest.raises(SettingError, match=r"fuzz\.yaml:11: .*window: longer than 10,000 years"):
        read_recipe(path)


@pytest.mark.parametrize("text", CONTRACTS, ids=lambda text: plain(text)["id"])
def test_a_contract_reads_equal_from_what_a_machine_writes_of_it(folder, text):
    path = folder / "fuzz.yaml"
    path.write_text(text)
    written = folder / "written.yaml"
    written.write_bytes(dump(read_document(path).value))
    assert read_contract(written) == read_contract(path)


def refusal(read: Callable[[Path], Any], folder: Path, value: Any) -> str:
    path = folder / "fuzz.yaml"
    path.write_bytes(dump(value))
    with pytest.raises(SettingError) as caught:
        read(path)
    return caught.value.message


@pytest.mark.parametrize(("read", "text"), [(read_contract, CONTRACTS[0]), (read_contract, CONTRACTS[1]), (read_recipe, RECIPES[1])],
                         ids=["contract", "side table", "recipe"])  # fmt: skip
def test_an_unknown_key_is_refused_by_its_name_wherever_it_stands(folder, read, text):
    whole = plain(text)
    for place in ((), *places(whole)):
        # A model's options are the model's to check; a column's `on` and a `value` are free.
        if not isinstance(at(whole, place), dict) or place[:1] == ("model",) or place[-1:] == ("on",):
            continue
        value = copy.deepcopy(whole)
        at(value, place)["no_such_key"] = 1
        assert "no_such_key" in refusal(read, folder, value), place


@pytest.mark.parametrize(("read", "text"), [(read_contract, CONTRACTS[0]), (read_contract, CONTRACTS[1]), (read_recipe, RECIPES[1])],
                         ids=["contract", "side table", "recipe"])  # fmt: skip
def test_keys_and_values_in_place_of_a_plain_value_are_refused_by_its_key(folder, read, text):
    whole = plain(text)
    for place in places(whole):
        if isinstance(at(whole, place), dict | list):
            continue
        value = copy.deepcopy(whole)
        at(value, place[:-1])[place[-1]] = {"no_such_key": 1}
        key = next(part for part in reversed(place) if isinstance(part, str))
        key = "custom property" if key == "value" else key
        assert key in refusal(read, folder, value), place
