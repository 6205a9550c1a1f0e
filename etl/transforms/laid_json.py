"""JSON lines that are laid out as one of them is: the same keys in the same order, with the same signs in between.

A producer writes all its messages so. Cut at its quotes, a line without escapes then has what lies between its values where
the other has it, and need not be searched. What is not laid out so is left to ``plain_json``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pyspark.sql import DataFrame

from etl.transforms.parsing import PLACE, cell
from etl.transforms.plain_json import CONTROL, NOT_PLAIN, STRINGS, cell_type, fits, is_clean, typed_value
from etl.transforms.sql import literal
from schemas import Contract
from schemas.expressions import quote_name


@dataclass(frozen=True)
class Layout:
    """A line's pieces between quotes: how many, the ones that are ``fixed``, by number; of strings the number, by column; of bare
    values the number, what stands before and what after them."""

    num_pieces: int
    fixed: tuple[tuple[int, str], ...]
    strings: tuple[tuple[str, int], ...]
    bare: tuple[tuple[str, int, str, str], ...]


def find_layout(lines: Iterable[bytes], contract: Contract) -> Layout | None:
    """The layout of most of some lines; None if they have none."""
    found = Counter(layout for line in lines if (layout := _layout_of(line, contract)) is not None)
    return found.most_common(1)[0][0] if found else None


def _layout_of(line: bytes, contract: Contract) -> Layout | None:
    try:
        text = line.decode()
        pairs = json.loads(text, object_pairs_hook=tuple) if "\\" not in text else None
    except ValueError:
        return None
    names = {column.name for column in contract.source_columns}
    if not isinstance(pairs, tuple) or not pairs or len({name for name, _ in pairs} & names) < len(pairs):
        return None
    pieces = text.split('"')
    fixed, strings, bare, at = [(0, pieces[0])], [], [], 1
    for name, value in pairs:
        is_text = contract.require(name, "a message").type in STRINGS
        fixed.append((at, name))
        if is_text and isinstance(value, str):
            fixed += [(at + 1, pieces[at + 1]), (at + 3, pieces[at + 3])]
            strings.append((name, at + 2))
            at += 4
        elif not is_text and isinstance(value, int | float | None):  # of a text that is null here, most lines may hold one
            around = re.fullmatch(r"(\s*:\s*)\S+?(\s*[,}]\s*)", pieces[at + 1])
            if around is None:
                return None
            bare.append((name, at + 1, around[1], around[2]))
            at += 2
        else:
            return None
    return Layout(len(pieces), tuple(fixed), tuple(strings), tuple(bare)) if at == len(pieces) else None


def with_laid_cells(lines: DataFrame, contract: Contract, layout: Layout) -> DataFrame:
    """Of lines in the layout the cells, as ``with_plain_cells`` gives them; any other line has the fault ``NOT_PLAIN``."""
    rows = lines.selectExpr("*", f"if({is_clean('_raw')}, split(_raw, '\"', -1), NULL) AS _pieces")
    texts, conditions = {name: f"get(_pieces, {at})" for name, at in layout.strings}, [f"size(_pieces) = {layout.num_pieces}"]
    conditions += [f"get(_pieces, {at}) = {literal(piece)}" for at, piece in layout.fixed]
    if texts:
        conditions.append(f"NOT concat({', '.join(texts.values())}) RLIKE {literal(CONTROL)}")
    bare = []
    for name, at, before, after in layout.bare:
        piece = f"get(_pieces, {at})"
        conditions.append(f"startswith({piece}, {literal(before)}) AND endswith({piece}, {literal(after)})")
        inside = f"substring({piece}, {len(before) + 1}, octet_length({piece}) - {len(before) + len(after)})"
        bare.append(f"{inside} AS {quote_name(f'_bare_{name}')}")
    rows = rows.selectExpr("*", *bare)
    columns = {column.name: column for column in contract.source_columns}
    values = {name: typed_value(columns[name], quote_name(f"_bare_{name}")) for name, *_ in layout.bare}
    known = {**{name: f"CAST(NULL AS {cell_type(column)})" for name, column in columns.items()}, **texts, **values}
    rows = rows.selectExpr("*", *(f"{value} AS {quote_name(cell(name))}" for name, value in known.items()))
    conditions += [f"({fits(columns[name], quote_name(f'_bare_{name}'))})" for name, *_ in layout.bare]
    fault = (f"if(coalesce({' AND '.join(conditions)}, false), if(is_valid_utf8(_raw), NULL, 'utf8'), {literal(NOT_PLAIN)}) "
             "AS _fault")  # fmt: skip
    return rows.selectExpr(*PLACE, "_raw", fault, "CAST(NULL AS STRING) AS _fault_value",
                           *(quote_name(cell(name)) for name in columns))  # fmt: skip
