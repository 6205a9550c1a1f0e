"""The grammar of expressions (see ``schemas.expressions``): what may stand in one, and how it is written for Spark."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlglot import exp
from sqlglot.dialects.spark import Spark
from sqlglot.errors import SqlglotError
from sqlglot.generators.spark import SparkGenerator
from sqlglot.parsers.spark import SparkParser

from lakering.errors import SettingError, nearest

#: Functions that are deterministic, read nothing, and answer null rather than throw on the values of their types.
FUNCTIONS = frozenset(
    """
    coalesce ifnull nvl nullif greatest least isnull isnotnull
    lower upper trim ltrim rtrim length concat concat_ws substring substr replace lpad rpad left right
    startswith endswith contains
    year quarter month day dayofmonth dayofweek weekday dayofyear weekofyear hour minute second
    date_trunc trunc date_format datediff date_diff date_add date_sub last_day unix_seconds unix_micros unix_date
    try_make_timestamp to_utc_timestamp from_utc_timestamp try_to_timestamp try_to_date
    round bround floor ceil sqrt ln log10 log1p log2 exp pow power sin cos tan asin acos atan atan2 radians degrees
    sign try_add try_subtract try_multiply try_divide try_mod hash xxhash64 crc32 sha2 md5
    """.split()  # noqa: SIM905
)

OPERATORS: tuple[type[exp.Expression], ...] = (
    exp.Column, exp.Identifier, exp.Literal, exp.Null, exp.Boolean, exp.Paren, exp.Neg, exp.Not, exp.And, exp.Or,
    exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.Is, exp.In, exp.Between, exp.Like,
    exp.Case, exp.If, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Interval, exp.Var,
    exp.Cast, exp.TryCast, exp.DataType, exp.DataTypeParam, exp.Anonymous,
)  # fmt: skip
UNITS = ("microsecond", "millisecond", "second", "minute", "hour", "day", "week", "month", "year")
TRY_FORMS = {
    exp.Add: "try_add",
    exp.Sub: "try_subtract",
    exp.Mul: "try_multiply",
    exp.Div: "try_divide",
    exp.Mod: "try_mod",
}


class _Parser(SparkParser):
    """Spark's grammar with no function known, so that each keeps the name that was written."""

    FUNCTIONS: ClassVar[dict[str, Any]] = {}
    FUNCTION_PARSERS = {k: v for k, v in SparkParser.FUNCTION_PARSERS.items() if k in ("CAST", "TRY_CAST")}  # noqa: RUF012
    NO_PAREN_FUNCTIONS: ClassVar[dict[Any, Any]] = {}


class _Generator(SparkGenerator):
    """Writes Spark SQL in which operators and casts answer null where they would throw."""

    TRANSFORMS = SparkGenerator.TRANSFORMS | {
        kind: (lambda self, node, form=form: self.func(form, node.this, node.expression)) for kind, form in TRY_FORMS.items()
    }
    for _cast in (exp.Cast, exp.TryCast):
        TRANSFORMS.pop(_cast, None)

    def cast_sql(self, expression: exp.Cast, safe_prefix: str | None = None) -> str:
        return f"TRY_CAST({self.sql(expression, 'this')} AS {self.sql(expression, 'to')})"

    def trycast_sql(self, expression: exp.TryCast) -> str:
        return self.cast_sql(expression)


def parse(text: str) -> tuple[str, frozenset[str]]:
    """The SQL that Spark is to run, and the columns that it reads."""
    if len(text) > 4000:
        raise SettingError(f"expression of {len(text):,} characters: 4,000 are allowed")
    try:
        return _parse(text)
    except (SqlglotError, RecursionError) as error:
        raise SettingError(f"expression {text!r} cannot be read: {str(error).splitlines()[0]}") from None


def _parse(text: str) -> tuple[str, frozenset[str]]:
    trees = _Parser(dialect=Spark()).parse(Spark().tokenize(text), text)
    if len(trees) != 1 or trees[0] is None:
        raise SettingError(f"expression {text!r}: expected one expression")
    tree = trees[0]
    for node in tree.walk():
        _validate(node, text)
    columns = frozenset(column.name for column in tree.find_all(exp.Column))
    # Spark would put the value of ${env:HOME} in place of that text; a name of a column holds no such sign.
    return _Generator(dialect=Spark()).generate(tree).replace("${", "\\u0024{"), columns


def _validate(node: exp.Expr, text: str) -> None:
    if isinstance(node, exp.Anonymous):
        name = str(node.this).lower()
        if name not in FUNCTIONS:
            raise SettingError(f"expression {text!r}: function {name!r} is not allowed{nearest(name, FUNCTIONS)}")
    elif not isinstance(node, OPERATORS):
        raise SettingError(
            f"expression {text!r}: {type(node).__name__.lower()} is not allowed here ({node.sql(dialect=Spark())!r})"
        )
    elif isinstance(node, exp.Column) and (node.table or isinstance(node.this, exp.Star)):
        raise SettingError(f"expression {text!r}: {node.sql()!r} must be the plain name of a column")
    elif isinstance(node, exp.Interval):
        unit = node.args.get("unit")
        name = str(unit.this).lower().removesuffix("s") if unit is not None else ""
        if name not in UNITS or not isinstance(node.this, exp.Literal):
            raise SettingError(
                f"expression {text!r}: an interval is a number and a unit, such as interval 2 hours{nearest(name, UNITS)}"
            )
    elif isinstance(node, exp.In) and (node.args.get("query") or node.args.get("unnest") or node.args.get("field")):
        raise SettingError(f"expression {text!r}: IN takes a list of values")
