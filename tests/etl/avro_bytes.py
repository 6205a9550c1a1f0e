"""Avro's binary encoding, by hand, and a schema registry on this machine."""

from __future__ import annotations

import datetime
import http.server
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def record(*fields: Any, name: str = "Trip", **more: Any) -> dict[str, Any]:
    """A schema, of pairs of a name and a type."""
    return {"type": "record", "name": name, "fields": [{"name": name, "type": kind} for name, kind in fields], **more}


def whole(number: int) -> bytes:
    number, found = (number << 1) ^ (number >> 63), b""
    while number > 0x7F:
        found, number = found + bytes([number & 0x7F | 0x80]), number >> 7
    return found + bytes([number])


def text(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return whole(len(value)) + value


def maybe(encoded: bytes | None) -> bytes:
    """Of a union of null and something."""
    return whole(0) if encoded is None else whole(1) + encoded


def double(value: float) -> bytes:
    return struct.pack("<d", value)


def decimal(unscaled: int, size: int = 2) -> bytes:
    return text(unscaled.to_bytes(size, "big", signed=True))


def micros(at: str) -> int:
    return (datetime.datetime.fromisoformat(at) - EPOCH) // datetime.timedelta(microseconds=1)


def days(day: str) -> int:
    return (datetime.date.fromisoformat(day) - EPOCH.date()).days


DATE, INSTANT = {"type": "int", "logicalType": "date"}, {"type": "long", "logicalType": "timestamp-micros"}
PRICE = {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 4}
#: Of the small table of the ingest tests.
TRIP = record(("day", DATE), ("id", "int"), ("at", INSTANT), ("fare", ["null", "double"]), ("price", ["null", PRICE]),
              ("zone", ["null", "string"]), ("paid", ["null", "boolean"]), ("note", ["null", "string"]), namespace="org.trips")  # fmt: skip


def avro_trip(
    id: int = 1, *, fare: float | None = 10.5, price: bytes | None = decimal(12500), note: bytes | None = text("hello")
) -> bytes:
    """What ``tests.etl.streams.trip`` says, in ``TRIP``."""
    return (whole(days("2024-01-01")) + whole(id) + whole(micros("2024-01-01T08:00:00+00:00")) + maybe(None if fare is None else double(fare))
            + maybe(price) + maybe(text("north")) + maybe(b"\x01") + maybe(note))  # fmt: skip


def framed(id: int, body: bytes) -> bytes:
    """In the registry's wire format."""
    return b"\0" + id.to_bytes(4, "big") + body


Answer = tuple[int, dict[str, str], bytes]


class TrialRegistry:
    """Answers with what ``answers`` holds for a path, the last of a list for ever; keeps the paths and logins that it was asked by."""

    def __init__(self, server: http.server.HTTPServer) -> None:
        self.server = server
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, str | None]] = []

    def url(self, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, id: int, status: int, body: Any = b"", prefix: str = "", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers.setdefault(f"{prefix}/schemas/ids/{id}", []).append((status, headers, content))


@contextmanager
def trial_registry() -> Iterator[TrialRegistry]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            registry.asked.append((self.path, self.headers.get("Authorization")))
            answers = registry.answers.get(self.path) or [(404, {}, b'{"error_code": 40403}')]
            status, headers, content = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    registry = TrialRegistry(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
    thread = threading.Thread(target=registry.server.serve_forever)
    thread.start()
    try:
        yield registry
    finally:
        registry.server.shutdown()
        thread.join()
        registry.server.server_close()
