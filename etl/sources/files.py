"""Files: which ones a recipe names, and whether they are still as they were."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pyarrow import fs

from lakering.errors import InputError
from lakering.names import fingerprint
from lakering.storage import Storage, StorageSettings

WILDCARDS = re.compile(r"[*?\[]")
#: Names that writers use for what is not data.
HIDDEN = (".", "_")


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when it was listed. ``uri`` is how Spark names it; ``modified`` is in nanoseconds."""

    path: str
    uri: str
    size: int
    modified: int

    @property
    def source(self) -> str:
        """What a row's provenance names: the file, and which state of it."""
        return f"{self.uri}#{fingerprint([self.size, self.modified], 12)}"

    def identity(self, contract_version: str) -> str:
        """What tells whether a file is in a table already: its state, and the contract that it was read under."""
        return f"{self.source}@{contract_version}"


def list_files(pattern: str, settings: StorageSettings | None = None) -> list[SourceFile]:
    """The files that a path, a folder or a glob names, by path. Hidden files (``.x``, ``_x``) are left out,
    unless a glob spells the dot or the underscore.

    Raises InputError when there is none, or when one of them is empty."""
    base, wild = _split_glob(pattern)
    storage = Storage(base, settings or StorageSettings())
    try:
        found = _find(storage, wild)
    except (OSError, ValueError, re.error) as error:  # no rights, no such host, a NUL in the name, [z-a]
        raise InputError(f"{pattern} cannot be listed: {error}", next_step="check the 'files' of the recipe's sources") from None
    if found is None:
        raise InputError(f"{pattern} does not exist", next_step="check the 'files' of the recipe's sources")
    if not found:
        what = "matches no file" if wild else "is a folder without files"
        raise InputError(f"{pattern} {what}", next_step="check the 'files' of the recipe's sources")
    empty = sorted(f.path for f in found if f.size == 0)
    if empty:
        raise InputError(
            f"{empty[0]} is empty ({len(empty)} of {len(found)} files are)", next_step="remove it, or write it again"
        )
    root = storage.path()
    return sorted(
        (SourceFile(f.path, _uri(storage, f.path, root), f.size, f.mtime_ns or 0) for f in found),
        key=lambda file: file.path,
    )


def _find(storage: Storage, wild: str) -> list[fs.FileInfo] | None:
    """The files at a path, below a folder, or that a pattern below it names; None when there is nothing at the path."""
    root = storage.path()
    if wild:
        matches = re.compile(_glob_regex(root + "/" + wild)).fullmatch
        selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
        shown = re.search(r"(^|/)[._]", wild) is not None
        return [f for f in storage.filesystem.get_file_info(selector)
                if f.is_file and matches(f.path) and (shown or not _hidden(f.path[len(root) :]))]  # fmt: skip
    info = storage.filesystem.get_file_info(root)
    if info.type == fs.FileType.Directory:
        everything = storage.filesystem.get_file_info(fs.FileSelector(info.path, recursive=True))
        return [f for f in everything if f.is_file and not _hidden(f.path[len(info.path) :])]
    return [info] if info.is_file else None


def folder_of(pattern: str, settings: StorageSettings | None = None) -> str:
    """The URI of the folder that a pattern's files are named from: the folder itself, or what stands before a wildcard."""
    base, wild = _split_glob(pattern)
    storage = Storage(base, settings or StorageSettings())
    is_file = not wild and storage.filesystem.get_file_info(storage.path()).is_file
    return storage.uri().rsplit("/", 1)[0] if is_file else storage.uri()


def _split_glob(pattern: str) -> tuple[str, str]:
    """``/a/b/*.csv`` is the folder ``/a/b`` and the pattern ``*.csv``."""
    if not WILDCARDS.search(pattern):
        return pattern.rstrip("/") or "/", ""
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if WILDCARDS.search(part))
    return "/".join(parts[:first]) or ("/" if pattern.startswith("/") else "."), "/".join(parts[first:])


def _glob_regex(pattern: str) -> str:
    """``*`` and ``?`` stay within a folder's name, ``**`` crosses folders, ``[!x]`` is any character but x."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", pattern)
    table = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        table.get(part) or (part.replace("[!", "[^", 1) if re.fullmatch(r"\[.+\]", part) else re.escape(part)) for part in parts
    )


def _hidden(relative: str) -> bool:
    return any(part.startswith(HIDDEN) for part in relative.strip("/").split("/"))


def _uri(storage: Storage, path: str, root: str) -> str:
    return storage.uri(*path[len(root) :].strip("/").split("/")) if path != root else storage.uri()


def validate_unchanged(files: Iterable[SourceFile], settings: StorageSettings | None = None) -> None:
    """Raises InputError when a file is no longer as it was listed: what was read may be half of each."""
    for file in files:
        storage = file_storage(file.path, file.uri, settings)
        info = storage.filesystem.get_file_info(storage.path())
        if not info.is_file or (info.size, info.mtime_ns or 0) != (file.size, file.modified):
            raise InputError(f"{file.path} changed while it was read; nothing of it was written",
                             next_step="run again when its writer is done")  # fmt: skip


def file_storage(path: str, uri: str, settings: StorageSettings | None = None) -> Storage:
    """A file by itself, to be opened with ``storage.filesystem`` at ``storage.path()``."""
    return Storage(path if uri.startswith("file:") else uri, settings or StorageSettings())
