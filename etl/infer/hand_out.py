"""What was inferred, handed out: read again before it is, written to new files alone, and summed up."""

from __future__ import annotations

import tempfile
from pathlib import Path

from etl.infer.table import Table
from lakering.errors import LakeringError, SettingError
from lakering.summary import Summary
from schemas import read_contract


def validate_contract(text: str) -> None:
    """Raises SettingError when a contract's text would not be read here: such a one is not handed out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "contract.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            read_contract(path)
        except LakeringError as error:
            place = error.message.removeprefix(f"{path}:")
            raise SettingError(f"a contract of these files could not be read here: line {place}") from None


def write_new(path: str, text: str) -> None:
    """Writes a file, with its folder. Raises SettingError when it is there already."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise exists(path) from None
    except OSError as error:
        raise SettingError(f"{path} cannot be written: {error.strerror}") from None


def exists(path: str) -> SettingError:
    return SettingError(f"{path} exists, and is not written over", next_step="move it away, or name another file")


def report_table(summary: Summary, table: Table, *, contract: str | None, recipe: str | None) -> None:
    """Adds what was found, and the command that comes next."""
    sample, columns = table.sample, table.columns
    summary.add("sample", files=f"{len(sample.paths)} of {sample.num_files}", rows=sample.num_rows, all_rows=sample.is_whole)
    if sample.faults:
        summary.add("sample", not_taken_apart=dict(sample.faults))
    types = dict.fromkeys(column.type for column in columns)
    summary.add("columns", **{kind: [column.name for column in columns if column.type == kind] for kind in types})
    summary.add("table", key=list(table.key.columns) if table.key else "none", times=list(table.times),
                nullable=[column.name for column in columns if not column.required])  # fmt: skip
    if table.key:
        summary.add("table", the_key_is=table.key.sure)
    if table.left_out:
        summary.add("table", left_out=list(table.left_out))
    if contract:
        check = f"make check RECIPE={recipe}" if recipe else f"make check CONTRACT={contract}"
        summary.add("next", edit=[path for path in (contract, recipe) if path], then=check)
