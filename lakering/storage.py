"""Paths and URLs: one description of where things lie, for Spark and for pyarrow alike.

A lake is a folder or a URL (``file://``, ``s3://``, ``s3a://``, ``hdfs://``). Small files (manifests, records, learnt
vocabularies) are written whole or not at all: on a local disk through a temporary name, fsync and rename; on an object
store through its atomic put.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from lakering.errors import InputError, IntegrityError, SettingError

if TYPE_CHECKING:
    from pyarrow import fs

LOCAL_SCHEMES = ("", "file")
S3_SCHEMES = ("s3", "s3a")
SCHEMES = (*LOCAL_SCHEMES, *S3_SCHEMES, "hdfs", "viewfs")


@dataclass(frozen=True)
class StorageSettings:
    """What an S3-like store needs beyond its URL. Credentials never stand here: both sides take them from the
    environment or the instance (the AWS default chain)."""

    endpoint: str | None = None
    region: str | None = None
    path_style: bool = False

    def for_spark(self) -> dict[str, str]:
        """The same settings as ``spark.hadoop.*`` keys."""
        conf = {}
        if self.endpoint:
            conf["spark.hadoop.fs.s3a.endpoint"] = self.endpoint
            conf["spark.hadoop.fs.s3a.connection.ssl.enabled"] = str(not self.endpoint.startswith("http://")).lower()
        if self.region:
            conf["spark.hadoop.fs.s3a.endpoint.region"] = self.region
        if self.path_style:
            conf["spark.hadoop.fs.s3a.path.style.access"] = "true"
        return conf

    def for_pyarrow(self) -> dict[str, Any]:
        """The same settings as arguments of ``pyarrow.fs.S3FileSystem``."""
        arguments: dict[str, Any] = {}
        if self.endpoint:
            parts = urlsplit(self.endpoint if "//" in self.endpoint else f"https://{self.endpoint}")
            arguments |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
        if self.region:
            arguments["region"] = self.region
        return arguments


@dataclass(frozen=True)
class Storage:
    """A root folder or URL, and the whole-file operations on what lies below it.

    ``parts`` of every method are path components relative to the root, such as ``("runs", "flights", "record.json")``.
    """

    root: str
    settings: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        scheme = urlsplit(self.root).scheme if "://" in self.root or self.root.startswith("file:/") else ""
        if scheme not in SCHEMES:
            raise SettingError(f"{self.root!r}: scheme {scheme!r} is not known; use a path or one of {SCHEMES[1:]}")
        if scheme in LOCAL_SCHEMES:
            plain = unquote(urlsplit(self.root).path) if scheme else self.root
            object.__setattr__(self, "root", str(Path(plain).expanduser().absolute()))
        else:
            object.__setattr__(self, "root", self.root.rstrip("/"))
            if scheme in S3_SCHEMES and not urlsplit(self.root).netloc:
                raise SettingError(f"{self.root!r} names no bucket")
        if "\0" in self.root:
            raise SettingError(f"{self.root!r} is not a path: it holds a NUL")

    @property
    def is_local(self) -> bool:
        """Whether the root lies on a mounted file system, where Delta's commits need our lock."""
        return "://" not in self.root

    @cached_property
    def filesystem(self) -> fs.FileSystem:
        from pyarrow import fs  # 0.3 s: a recipe is read, and its errors are told, without it

        if self.is_local:
            return fs.LocalFileSystem()
        if urlsplit(self.root).scheme in S3_SCHEMES:
            return fs.S3FileSystem(**self.settings.for_pyarrow())
        return fs.FileSystem.from_uri(self.root)[0]

    def path(self, *parts: str) -> str:
        """The path as ``filesystem`` takes it."""
        if self.is_local:
            return "/".join((self.root, *parts))
        split = urlsplit(self.root)
        base = split.netloc + split.path if split.scheme in S3_SCHEMES else split.path
        return "/".join((base, *parts))

    def uri(self, *parts: str) -> str:
        """The path as Spark and Hadoop write it: not percent-encoded, and one slash for a local file."""
        if self.is_local:
            return "file:" + "/".join((self.root, *parts))
        return "/".join(("s3a://" + self.root.split("://", 1)[1] if self.root.startswith("s3://") else self.root, *parts))

    def exists(self, *parts: str) -> bool:
        return self.filesystem.get_file_info(self.path(*parts)).type.name != "NotFound"

    def list(self, *parts: str) -> list[str]:
        """Names directly below a folder, sorted; empty when the folder does not exist."""
        from pyarrow import fs

        found = self.filesystem.get_file_info(fs.FileSelector(self.path(*parts), allow_not_found=True))
        return sorted(info.base_name for info in found)

    def walk(self, *parts: str) -> Iterator[fs.FileInfo]:
        """Every file below a folder."""
        from pyarrow import fs

        for info in self.filesystem.get_file_info(fs.FileSelector(self.path(*parts), recursive=True, allow_not_found=True)):
            if info.is_file:
                yield info

    def read(self, *parts: str) -> bytes:
        path = self.path(*parts)
        try:
            with self.filesystem.open_input_stream(path) as stream:
                return stream.read()
        except FileNotFoundError:
            raise InputError(f"{path} does not exist") from None

    def read_json(self, *parts: str) -> Any:
        text = self.read(*parts)
        try:
            return json.loads(text)
        except ValueError as error:
            raise IntegrityError(f"{self.path(*parts)} is not whole JSON: {error}") from None

    def write(self, content: bytes, *parts: str) -> None:
        """Writes a file whole or not at all, and durably."""
        path = self.path(*parts)
        if not self.is_local:
            puts_whole = urlsplit(self.root).scheme in S3_SCHEMES
            target = path if puts_whole else f"{path}.tmp-{os.getpid()}"
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(content)
            if not puts_whole:
                self.filesystem.move(target, path)
            return
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as stream:
                os.fchmod(handle, 0o644)
                stream.write(content)
                stream.flush()
                os.fsync(handle)
            os.replace(temporary, path)
        except BaseException:  # an interrupt too: nothing half-written is left, and the error goes on
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(folder)

    def write_json(self, value: Any, *parts: str) -> None:
        self.write((json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode(), *parts)

    def delete(self, *parts: str) -> None:
        """Removes a file or a whole folder; what is not there is no error."""
        info = self.filesystem.get_file_info(self.path(*parts))
        if info.type.name == "Directory":
            self.filesystem.delete_dir(info.path)
        elif info.is_file:
            self.filesystem.delete_file(info.path)


def sync_folder(folder: str) -> None:
    """Makes a rename in a local folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
