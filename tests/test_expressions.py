"""What an expression of a contract or recipe may say."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lakering.errors import SettingError
from schemas.expressions import parse_expression


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("arr_delay >= 30", {"arr_delay"}),
        ("sched_dep_utc - interval 2 hours", {"sched_dep_utc"}),
        ("case when a > 1 then b else c / 2 end", {"a", "b", "c"}),
        ("`odd name` in ('x', 'y') and not flag", {"odd name", "flag"}),
        ("if(hour(at) between 6 and 9, 1.0, 0.0)", {"at"}),
    ],
)
def test_columns_literals_operators_and_plain_functions_pass(text, columns):
    assert parse_expression(text).columns == columns


def test_what_would_throw_on_a_bad_row_is_rewritten_to_give_null():
    assert parse_expression("a / b + cast(c as int) * 2").sql == "TRY_ADD(TRY_DIVIDE(a, b), TRY_MULTIPLY(TRY_CAST(c AS INT), 2))"


@pytest.mark.parametrize(
    "text",
    [
        "java_method('java.lang.Runtime', 'getRuntime')",
        "reflect('java.lang.System', 'exit', 1)",
        "try_reflect('java.lang.System', 'exit', 1)",
        "`java_method`('java.lang.System', 'exit')",
        "system.builtin.reflect('x')",
        "(select max(x) from t)",
        "a in (select b from c)",
        "exists(select 1)",
        "1 union select 2",
        "a; drop table t",
        "sum(a) over ()",
        "count(*)",
        "transform(a, x -> x)",
        "rand()",
        "current_timestamp()",
        "now()",
        "input_file_name()",
        "t.a",
        "*",
        "a[0]",
        "",
        "a +",
        "(" * 500,
    ],
)
def test_what_reaches_the_jvm_a_query_a_clock_or_a_random_source_is_refused(text):
    with pytest.raises(SettingError, match="expression"):
        parse_expression(text)


def test_a_misspelt_function_gets_the_nearest_one():
    with pytest.raises(SettingError, match="function 'houre' is not allowed; did you mean 'hour'"):
        parse_expression("houre(at)")


def test_a_contract_with_expressions_has_the_same_name_in_every_process():
    ask = "from schemas import read_contract; print(read_contract('schemas/flights.yaml').fingerprint)"
    found = {subprocess.run([sys.executable, "-c", ask], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
                            check=True).stdout for seed in ("1", "2", "3")}  # fmt: skip
    assert len(found) == 1, "builds are named by it"
