"""Paths and URLs: one description of where things lie, for Spark and for pyarrow alike.

A lake is a folder or a URL: of a file system that pyarrow knows (``file://``, ``s3://``, ``s3a://``, ``gs://``,
``hdfs://``), or one that fsspec does (``lakering.fsspec_files``). Small files (manifests, records, learnt vocabularies)
are written whole or not at all: on a local disk through a temporary name, fsync and rename; on S3 through its atomic
put; elsewhere through a temporary name and a move.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from lakering.errors import InputError, IntegrityError, LakeringError, SettingError

if TYPE_CHECKING:
    from pyarrow import fs

LOCAL_SCHEMES = ("", "file")
S3_SCHEMES = ("s3", "s3a")
GOOGLE_SCHEMES = ("gs", "gcs")
HADOOP_SCHEMES = ("hdfs", "viewfs")
SCHEMES = (*LOCAL_SCHEMES, *S3_SCHEMES, *GOOGLE_SCHEMES, *HADOOP_SCHEMES)


CREDENTIALS = "credentials come from the environment alone (AWS_ACCESS_KEY_ID, AWS_PROFILE, the machine's role, ...)"


@dataclass(frozen=True)
class StorageSettings:
    """What an S3-like store needs beyond its URL. Credentials never stand here: both sides take them from the
    environment or the instance (the AWS default chain)."""

    endpoint: str | None = None
    region: str | None = None
    path_style: bool = False

    def __post_init__(self) -> None:
        if self.endpoint and "@" in self.endpoint:
            raise SettingError("storage.endpoint holds a user or a password", next_step=f"take it out; {CREDENTIALS}")

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
            # With an endpoint pyarrow always puts the bucket into the path.
            arguments |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
        if self.region:
            arguments["region"] = self.region
        return arguments

    def for_delta(self) -> dict[str, str]:
        """The same settings as delta-rs takes them (``storage_options``)."""
        options = {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": str(not self.path_style).lower()}
        if self.endpoint:
            endpoint = self.endpoint if "//" in self.endpoint else f"https://{self.endpoint}"
            options |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()}
        return options | ({"AWS_REGION": self.region} if self.region else {})


@dataclass(frozen=True)
class Storage:
    """A root folder or URL, and the whole-file operations on what lies below it.

    ``parts`` of every method are path components relative to the root, such as ``("runs", "flights", "record.json")``.
    """

    root: str
    settings: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        split = _split(self.root)
        scheme = split.scheme
        if scheme not in SCHEMES:
            from lakering import fsspec_files

            if not fsspec_files.is_known(scheme):
                known = ", ".join(SCHEMES[1:])
                raise SettingError(f"{self.root!r}: scheme {scheme!r} is not known; use a path, {known}, or one of fsspec's")
        if scheme in LOCAL_SCHEMES:
            plain = unquote(urlsplit(self.root).path) if scheme else self.root
            object.__setattr__(self, "root", str(Path(plain).expanduser().absolute()))
        else:
            object.__setattr__(self, "root", self.root.rstrip("/"))
            if scheme in (*S3_SCHEMES, *GOOGLE_SCHEMES) and not split.netloc:
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
        if self._scheme in S3_SCHEMES:
            return fs.S3FileSystem(**self.settings.for_pyarrow())
        return fs.FileSystem.from_uri(self.root)[0] if self._scheme in SCHEMES else self._of_fsspec[0]

    @property
    def _scheme(self) -> str:
        return "" if self.is_local else urlsplit(self.root).scheme

    @cached_property
    def _of_fsspec(self) -> tuple[fs.FileSystem, str]:
        from lakering import fsspec_files

        return fsspec_files.open_url(self.root)

    @cached_property
    def _base(self) -> str:
        """The root as ``filesystem`` takes it."""
        if self.is_local:
            return self.root
        if self._scheme not in SCHEMES:
            return self._of_fsspec[1]
        place = self.root.split("://", 1)[1]  # as Hadoop reads it: '#' and '%' stand for themselves
        return "".join(place.partition("/")[1:]) if self._scheme in HADOOP_SCHEMES else place

    def path(self, *parts: str) -> str:
        """The path as ``filesystem`` takes it."""
        return "/".join((self._base, *parts))

    def uri(self, *parts: str) -> str:
        """The path as Spark and Hadoop write it: not percent-encoded, and one slash for a local file."""
        if self.is_local:
            return "file:" + "/".join((self.root, *parts))
        return "/".join(("s3a://" + self.root.split("://", 1)[1] if self.root.startswith("s3://") else self.root, *parts))

    @contextmanager
    def _reached(self, path: str) -> Iterator[None]:
        """Away from this machine, a refused or broken connection is an error that says what to look at. It is no
        InputError: nobody may take what cannot be reached for what is not there."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if self.is_local:
                raise
            chosen = ", ".join(f"{name} {value}" for name, value in vars(self.settings).items() if value) or "none"
            look = f"check the URL, the storage settings ({chosen}), the rights and the network; {CREDENTIALS}"
            raise LakeringError(f"{self._scheme}://{path}: {error}", next_step=look) from error

    def exists(self, *parts: str) -> bool:
        path = self.path(*parts)
        with self._reached(path):
            return self.filesystem.get_file_info(path).type.name != "NotFound"

    def list(self, *parts: str) -> list[str]:
        """Names directly below a folder, sorted; empty when the folder does not exist."""
        from pyarrow import fs

        path = self.path(*parts)
        with self._reached(path):
            found = self.filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def walk(self, *parts: str) -> Iterator[fs.FileInfo]:
        """Every file below a folder."""
        from pyarrow import fs

        path = self.path(*parts)
        with self._reached(path):
            found = self.filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
        yield from (info for info in found if info.is_file)

    def read(self, *parts: str) -> bytes:
        path = self.path(*parts)
        try:
            with self._reached(path), self.filesystem.open_input_stream(path) as stream:
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
        with self.writing(*parts) as stream:
            stream.write(content)

    @contextmanager
    def writing(self, *parts: str) -> Iterator[Any]:
        """A binary stream into a file that is there, whole and durably, once the block ended without an error. S3 may keep
        what was written up to an error."""
        path = self.path(*parts)
        if not self.is_local:
            puts_whole = self._scheme in S3_SCHEMES
            target = path if puts_whole else f"{path}.tmp-{os.getpid()}"
            with self._reached(path):
                with self.filesystem.open_output_stream(target) as stream:
                    yield stream
                if not puts_whole:
                    self.filesystem.move(target, path)
            return
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as stream:
                os.fchmod(handle, 0o644)
                yield stream
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
        path = self.path(*parts)
        with self._reached(path):
            info = self.filesystem.get_file_info(path)
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


def _split(root: str) -> SplitResult:
    """A root's parts. What it holds of a password is not repeated."""
    if "://" not in root:
        return SplitResult("file" if root.startswith("file:/") else "", "", root, "", "")
    try:
        split = urlsplit(root)
    except ValueError as error:
        raise SettingError(f"{root!r} is not a URL: {error}") from None
    place = f"a {split.scheme}:// URL"
    if split.password is not None or (split.scheme in S3_SCHEMES and "@" in split.netloc):
        raise SettingError(f"{place} holds a user or a password", next_step=f"take it out; {CREDENTIALS}")
    if re.search(r"\?\w+=", root):
        raise SettingError(f"{place} holds options after a '?'", next_step=f"see the recipe's 'storage'; {CREDENTIALS}")
    return split
