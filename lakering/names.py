"""Names that become paths or identifiers, and fingerprints that become names."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from lakering.errors import SettingError

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def validate_name(name: str, what: str) -> str:
    """A name that a person chose (a table, a column, a recipe): a letter, then letters, digits and underscores."""
    if not NAME.fullmatch(name):
        raise SettingError(f"{what} {name!r} is not a name: it takes a letter, then letters, digits and underscores, 64 at most")
    return name


def validate_identifier(name: str, what: str) -> str:
    """An identifier that we gave out earlier (a build, a snapshot, a run) and that a person hands back."""
    if not IDENTIFIER.fullmatch(name):
        raise SettingError(f"{what} {name!r} is not an identifier: letters, digits, '-' and '_' alone")
    return name


def fingerprint(value: Any, length: int = 16) -> str:
    """A stable name for a JSON-like value: the first hex digits of the SHA-256 of its canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def code_version(*packages: str) -> str:
    """A fingerprint of the source of the named packages, so that changed code makes a new build, snapshot or run."""
    digest = hashlib.sha256()
    for package in sorted(packages):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SettingError(f"package {package!r} is not installed")
        root = Path(next(iter(spec.submodule_search_locations)))
        for source in sorted(root.rglob("*.py")):
            digest.update(f"{package}/{source.relative_to(root)}\0".encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
