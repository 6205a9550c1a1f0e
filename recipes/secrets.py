"""Passwords of a recipe: named there, and held by the environment or by a file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from lakering.errors import InputError, SettingError

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_BYTES = 1 << 20


def where_passwords_are(example: str) -> str:
    return f"name the environment variable that holds it (password_variable: {example}) or its file (password_file)"


def validate_no_password(value: object, example: str) -> None:
    """Raises ValueError for a section that holds a password itself."""
    if isinstance(value, dict) and "password" in value:
        raise ValueError(f"a password does not stand in a recipe or a flag; {where_passwords_are(example)}")


def _variable(name: str) -> str:
    if not VARIABLE.fullmatch(name):
        raise ValueError("not a variable's name, which is letters, digits and underscores")
    return name


#: The name of an environment variable.
Variable = Annotated[str, AfterValidator(_variable)]


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
        raise SettingError(f"{place} holds signs that no password has, such as a line end")
    return text


def read_text(path: str, what: str) -> str:
    """A small text file. Raises InputError, which tells nothing of what it holds."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InputError(f"{what} {path} has more than {MAX_BYTES:,} bytes")
        return content.decode()
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{what} {path} is not a text") from None
