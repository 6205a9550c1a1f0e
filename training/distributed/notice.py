"""Termination notices: what tells a rank that its machine, or its job, is about to be ended.

A cloud's spot machines learn it some 30 to 120 seconds before, from a URL that only they can reach: on EC2
``http://169.254.169.254/latest/meta-data/spot/instance-action`` answers 404 until then, on Google's
``http://metadata.google.internal/computeMetadata/v1/instance/preempted`` FALSE.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import urllib.error
import urllib.request
from types import FrameType, TracebackType
from typing import Any
from urllib.parse import urlsplit

from lakering.errors import SettingError

#: Seconds between two looks, and that one may take.
INTERVAL, TIMEOUT = 2.0, 2.0
MAX_BYTES = 4096


def validate_place(place: str) -> str:
    """A ``--spot-notice``: ``file:/path``, ``http://...`` or ``https://...``. Raises SettingError for anything else."""
    try:
        parts = urlsplit(place)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    is_file = parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")
    if not is_file and not (parts.scheme in ("http", "https") and host):
        raise SettingError(f"--spot-notice {place!r}: expected file:/path/of/a/file, or a URL of http or https",
                           next_step="name what appears, or answers 200, when the machine is about to be ended")  # fmt: skip
    return place


class Notice:
    """``given`` is what told this rank to stop: SIGTERM, or a notice at ``place``; None until then.

    It listens inside a ``with`` block. A second SIGTERM has the meaning that the first would have had without it. Threads
    but the main one cannot listen to signals."""

    def __init__(self, place: str | None = None) -> None:
        self.given: str | None = None
        self._place = place
        self._before: Any = None
        self._listens = False
        self._ended = threading.Event()

    def __enter__(self) -> Notice:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
            self._listens = True
        if self._place is not None:
            threading.Thread(target=self._poll, args=(self._place,), name="notice", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.given = self.given or "SIGTERM"
        self._restore()

    def _restore(self) -> None:
        if self._listens:
            self._listens = False
            signal.signal(signal.SIGTERM, self._before if self._before is not None else signal.SIG_DFL)

    def _poll(self, place: str) -> None:
        while not self._ended.is_set():
            if is_given(place):
                self.given = self.given or f"notice at {place}"
                return
            self._ended.wait(INTERVAL)


def is_given(place: str) -> bool:
    """Whether the file is there, or the URL answers with status 200 and another text than FALSE. What cannot be reached
    has said nothing."""
    parts = urlsplit(place)
    if parts.scheme == "file":
        return os.path.exists(parts.path)
    request = urllib.request.Request(place, headers={"Metadata-Flavor": "Google"})  # Google's answers to no other
    with contextlib.suppress(OSError, ValueError), _opener().open(request, timeout=TIMEOUT) as answer:
        return bool(answer.status == 200 and answer.read(MAX_BYTES).strip().upper() != b"FALSE")
    return False


def _opener() -> urllib.request.OpenerDirector:
    """Neither a proxy nor another place that an answer may point to is asked: the notice is of this machine."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay())


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        return None
