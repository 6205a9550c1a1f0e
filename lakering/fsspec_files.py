"""File systems that fsspec knows and pyarrow does not, behind pyarrow's own interface.

Their options come from the environment or from fsspec's configuration (``FSSPEC_ABFS_ACCOUNT_NAME``,
``~/.config/fsspec``), as fsspec's documentation tells.
"""

from __future__ import annotations

from typing import Any

import fsspec
from pyarrow import fs

from lakering.errors import SettingError


def is_known(scheme: str) -> bool:
    return scheme in fsspec.available_protocols() or scheme in fsspec.registry


def open_url(url: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URL, and the URL's path in it. Raises SettingError when the scheme's package is missing or
    its options are."""
    try:
        files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError, TypeError) as error:
        raise SettingError(f"{url}: fsspec cannot open it: {error}") from error
    return fs.PyFileSystem(_Handler(files)), path.rstrip("/")


class _Handler(fs.FSSpecHandler):
    """pyarrow's handler, with what we rely on: folders that come with their files, and times of modification, which
    fsspec keeps under another name in each file system."""

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self._dated(info) for info in super().get_file_info(paths)]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return [self._dated(info) for info in super().get_file_info_selector(selector)]

    def _dated(self, info: fs.FileInfo) -> fs.FileInfo:
        if not info.is_file or info.mtime is not None:
            return info
        try:
            modified = self.fs.modified(info.path)
        except NotImplementedError:
            # The newest of two snapshots, and a build that somebody works on, are known by it.
            raise SettingError(f"{self.get_type_name()}: it tells no times of writing, and cannot hold a lake") from None
        return fs.FileInfo(info.path, info.type, size=info.size, mtime=modified)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        return super().open_output_stream(path, metadata)
