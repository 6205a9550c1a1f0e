"""Plain JSON lines are judged without a parser, and no otherwise than by it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from etl.parse import parse
from etl.sources.read import FileGroup
from etl.transforms.laid_json import find_layout
from etl.transforms.plain_json import NOT_PLAIN
from tests.etl.conftest import Trips

ROW = {"day": '"2024-01-01"', "id": "1", "at": '"2024-01-01T08:00:00Z"', "fare": "10.5", "price": "1.25", "zone": '"north"',
       "paid": "true", "note": '"hello"'}  # fmt: skip
VALUES = ["null", "true", "false", "nil", "NaN", "0", "-0", "00", "+1", "1.", ".5", "-0.0", "0.0", "1.10", "1.100", "5.0", "0.0001",
          "1e2", "1E400", "12345678.5", "123456789.25", "99999999999", "9" * 35, "0.1000000000000000055", "0.12345678901234567",
          "-7", "- 7", "1 2", "", '""', '" "', '"7"', '"true"', '"null"', '"id"', '"note"', '":"', '","', '"a, b: {c}"', '"é 漢"', "{}", "[]", '[1]',
          '{"id": 1}', '"2024-01-01"', '"2024-02-30"', '"2024-01-01T08:00:00.5+01:00"', '"x" "y"', '"x', "'x'", '"NA"']  # fmt: skip
LINES = ["", " ", "{", "}", "{}", "{ }", "null", '"id"', '{"id"}', '{"id":}', '{"id":1', '{"id":1,}', '{,"id":1}', '{"id":1}}', '{"id":1} x',
         '[{"id":1}]', '{"id":1}{"id":2}', '{"id":1 "day":"x"}', '{id:1}', '{"id",1}', '{"":1}', '{"other":1}', '{"id":1,"id":1}',
         '\ufeff{"id":1}', '{"note":"a","note":"a"}', '{"note":"id","id":1}', '{"note" : "day" , "id" : 1 }', '{"note":"x"}"']  # fmt: skip


def made_lines(number: int) -> list[str]:
    """Rows with one to three things changed: a value, a key, what stands between."""
    chance = random.Random(11)
    lines = []
    for _ in range(number):
        pairs = [[json.dumps(name), ":", value, ","] for name, value in ROW.items()]
        chance.shuffle(pairs)
        pairs[-1][3] = "}"
        for _ in range(chance.randrange(3)):
            pair = chance.choice(pairs)
            part = chance.choice((0, 1, 2, 2, 2, 2, 3))
            pair[part] = chance.choice({0: ['"id"', '"note"', '"more"', "id"], 1: [": ", " :", "::", ",", ""], 2: VALUES,
                                        3: [", ", " ,", ",,", "", "}", "} "]}[part])  # fmt: skip
        lines.append("{" + "".join("".join(pair) for pair in pairs))
    return lines


def judged(trips: Trips, lines: list[str], **how: Any) -> dict[int, tuple[Any, ...]]:
    """Of each line the refusal, and a hash of what it says if there is none."""
    texts = list(enumerate(lines))
    rows = trips.spark.createDataFrame(texts, "_row long, _raw string").selectExpr("0L AS _file", "0L AS _block", "*")
    columns = ["_row", "_refusal.column", "_refusal.rule", "if(_refusal IS NULL, _content_hash, NULL) AS _hash"]
    found = parse(rows, FileGroup("json", "json", ()), trips.contract, **how).selectExpr(*columns).collect()
    return {row["_row"]: tuple(row[1:]) for row in found}


def test_a_plain_line_is_judged_as_the_parsers_judge_it(trips):
    lines = [*LINES, *('{"fare": ' + value + "}" for value in VALUES), *('{"price":' + value + "}" for value in VALUES),
             *('{"id": 3, "note":' + value + "}" for value in VALUES), *('{"paid":' + v + ',"id":5}' for v in VALUES),
             *made_lines(1500)]  # fmt: skip
    plain = {number: told for number, told in judged(trips, lines, quick=True).items() if told[1] != NOT_PLAIN}
    parsed = judged(trips, lines)
    assert 500 < len(plain) < len(lines), "of both kinds there are many"
    assert [(lines[number], told, parsed[number]) for number, told in plain.items() if told != parsed[number]] == []


def test_a_line_in_the_layout_of_others_is_judged_as_the_parsers_judge_it(trips):
    chance = random.Random(5)
    style = [f'"{name}": ' for name in ROW]
    lines = []
    for _ in range(1500):
        values = list(ROW.values())
        for _ in range(chance.randrange(3)):
            values[chance.randrange(len(values))] = chance.choice(VALUES)
        between = chance.choice([", ", ", ", ", ", ",", " , "])
        lines.append("{" + between.join(map("".join, zip(style, values, strict=True))) + "}")
    lines += [
        line.replace("hello", text)
        for line in lines[:3]
        for text in ("a\tb", "a\\tb", "é\u0001", "漢字 🚲", "", "\x7f", ", ", 'a"b', '"', '", "id": 1, "note": "')
    ]
    lines += [line.replace('"hello"', '"') for line in lines[:3]]
    layout = find_layout((line.encode() for line in lines[:50]), trips.contract)
    assert layout is not None
    quick, whole = judged(trips, lines, quick=True, layout=layout), judged(trips, lines)
    laid = {number: told for number, told in quick.items() if told[1] != NOT_PLAIN}
    assert 300 < len(laid) < len(lines), "of both kinds there are many"
    assert [(lines[number], told, whole[number]) for number, told in laid.items() if told != whole[number]] == []


@pytest.mark.parametrize("line", [b"", b"{", b"{}", b"[]", b"7", b'{"id": 1, "id": 2}', b'{"other": 1}', b'{"id": "1"}', b'{"note": "a\\n"}',
                                  b'{"note": null}', b'{"id": {"id": 1}}', b'{"note": 1}', b"\xff", b'{"id": 1 }}'])  # fmt: skip
def test_what_is_no_flat_object_of_known_columns_has_no_layout(trips, line):
    assert find_layout([line], trips.contract) is None
