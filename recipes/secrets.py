"""Passwords of a recipe: named there, and held by the environment or by a file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lakering.errors import InputError, SettingError

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_BYTES = 1 << 20


def where_passwords_are(example: str) -> str:
    return f"name the environment variable that holds it (password_variable: {example}) or its file (password_file)"


def validate_no_password(value: object, example: str) -> None:
    """Raises ValueError for a section that holds a password itself. Called before the values are validated one by one, where
    the error would show them."""
    if not isinstance(value, dict):
        return
    if "password" in value:
        raise ValueError(f"a password does not stand in a recipe or a flag; {where_passwords_are(example)}")
    variable = value.get("password_variable")
    if variable is not None and not VARIABLE.fullmatch(str(variable)):
        raise ValueError("password_variable is not a variable's name, which is letters, digits and underscores; "
                         f"{where_passwords_are(example)}")  # fmt: skip


def read_password(section: str, variable: str | None, file: str | None, whose: str) -> str:
    """The password of ``whose`` in the file, else in the variable; a file's last line end is no part of it. Raises SettingError
    or InputError when it is not there."""
    if file is not None:
        text = read_text(file, f"{section}.password_file").removesuffix("\n").removesuffix("\r")
        place = f"{section}.password_file {file}"
    else:
        place = f"the environment variable {variable}"
        text = os.environ.get(variable or "", "")
    if not text:
        raise SettingError(f"there is no password in {place}", next_step=f"put that of {whose} there")
    if not text.isprintable():
        raise SettingError(f"{place} holds signs that no password has, such as a line end",
                           next_step=f"put the password of {whose} there, and nothing else")  # fmt: skip
    return text


def read_text(path: str, what: str) -> str:
    """A small text file. Raises InputError, which tells nothing of what it holds."""
    next_step = f"mend {what} in the recipe, or its file"
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InputError(f"{what} {path} has more than {MAX_BYTES:,} bytes", next_step=next_step)
        return content.decode()
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}", next_step=next_step) from None
    except UnicodeDecodeError:
        raise InputError(f"{what} {path} is not a text", next_step=next_step) from None
