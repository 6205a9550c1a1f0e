"""Plain JSON lines are judged without a parser, and no otherwise than by it."""

from __future__ import annotations

import json
import random

from etl.parse import parse
from etl.sources.read import FileGroup
from etl.transforms.plain_json import PLAIN, with_plain_cells

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


def test_a_plain_line_is_judged_as_the_parsers_judge_it(trips):
    """A tab before a line, which is no part of it to JSON, leaves it to the parsers."""
    lines = [*LINES, *('{"fare": ' + value + "}" for value in VALUES), *('{"price":' + value + "}" for value in VALUES),
             *('{"id": 3, "note":' + value + "}" for value in VALUES), *('{"paid":' + v + ',"id":5}' for v in VALUES),
             *made_lines(1500)]  # fmt: skip
    contract = trips.contract
    judged, plain = [], 0
    for before in ("", "\t"):
        texts = [(number, before + line) for number, line in enumerate(lines)]
        rows = trips.spark.createDataFrame(texts, "_row long, _raw string").selectExpr("0L AS _file", "0L AS _block", "*")
        plain = max(plain, with_plain_cells(rows, contract).where(PLAIN).count())
        columns = ["_refusal.column", "_refusal.rule", "if(_refusal IS NULL, _content_hash, NULL) AS _hash"]
        found = parse(rows, FileGroup("json", "json", ()), contract).orderBy("_row").selectExpr(*columns).collect()
        judged.append([tuple(row) for row in found])
    assert 500 < plain < len(lines), "of both kinds there are many"
    assert [(line, a, b) for line, a, b in zip(lines, *judged, strict=True) if a != b] == []
