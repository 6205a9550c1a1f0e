"""Writers' schemas of Avro messages, looked up by the number that a message names: in a folder, or of a schema registry."""

from __future__ import annotations

import http.client
import json
import logging
import ssl
import time
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lakering.errors import InputError, LakeringError
from recipes import Recipe
from recipes.registry import Registry
from recipes.secrets import read_text
from recipes.settings import TopicSource
from schemas.avro import UnusableSchemaError, WriterSchema, parse_writer_schema

log = logging.getLogger(__name__)
TIMEOUT_S, PATIENCE_S, PAUSE_S = 5.0, 10.0, 0.25
MAX_BYTES = 4 << 20
#: So many ids are asked for at once; a producer of garbage names others without end.
MAX_IDS = 100
#: Registries count in 32 bits with a sign, and take a greater number for a mistake of ours.
MAX_ID = 2**31 - 1
ACCEPT = "application/vnd.schemaregistry.v1+json, application/json"
#: Whoever answers so does not do so for long.
BUSY = (429, 500, 502, 503, 504)
Known = WriterSchema | UnusableSchemaError


class WriterSchemas:
    """The writers' schemas of a topic, as far as they are ``known``: by id, or the one of a topic whose messages are bare
    under None. One that no row can be read with is known as the error that says why."""

    def __init__(self, topic: str, *, registry: Registry | None = None, bare: WriterSchema | None = None) -> None:
        self.topic, self.known = topic, dict[int | None, Known]()
        self._registry = registry
        if bare is not None:
            self.known[None] = bare

    @property
    def has_ids(self) -> bool:
        return None not in self.known

    def learn(self, ids: Iterable[int]) -> bool:
        """Asks for schemas that are not known, of ``MAX_IDS`` at most; whether one of them is now.

        Raises LakeringError when the registry cannot tell whether it has them."""
        if self._registry is None:
            return False
        asked = [id for id in dict.fromkeys(ids) if id not in self.known and id <= MAX_ID]
        if len(asked) > MAX_IDS:
            log.warning(
                "topic '%s' names more than %d unknown schemas at once; the others are not asked for", self.topic, MAX_IDS
            )
        before = len(self.known)
        for id in asked[:MAX_IDS]:
            if (schema := find_schema(self._registry, id)) is not None:
                self.known[id] = schema
        return len(self.known) > before


def open_schemas(recipe: Recipe, source: TopicSource) -> WriterSchemas | None:
    """The writers' schemas of a recipe's topic; None of one that is not Avro. Raises SettingError or InputError for a
    ``schema_file`` that no row can be read with."""
    if source.format != "avro":
        return None
    if source.schema_file is None:
        return WriterSchemas(source.topic, registry=recipe.kafka.registry if recipe.kafka else None)
    path = recipe.resolve(source.schema_file)
    try:
        return WriterSchemas(source.topic, bare=parse_writer_schema(read_text(path, "schema_file")))
    except UnusableSchemaError as error:
        raise InputError(f"schema_file {path}: {error}; messages are read with a record's schema",
                         next_step=f"mend it, or name another in {recipe.path}") from None  # fmt: skip


def find_schema(registry: Registry, id: int, *, patience: float = PATIENCE_S) -> Known | None:
    """The schema of a number; None where the registry has none. One that is down is asked for ``patience`` seconds.

    Raises LakeringError when the registry cannot tell."""
    answer = _in_folder(registry.folder, id) if registry.folder is not None else _ask(registry, id, patience)
    try:
        return None if answer is None else parse_writer_schema(_schema_of(answer))
    except UnusableSchemaError as error:
        return error


def _schema_of(answer: str | dict[str, Any]) -> str:
    if isinstance(answer, str):
        return answer
    if (kind := answer.get("schemaType") or "AVRO") != "AVRO":
        raise UnusableSchemaError(f"{kind}, not AVRO")
    if answer.get("references"):
        raise UnusableSchemaError("it refers to other schemas of the registry")
    return str(answer["schema"])


def _in_folder(folder: str, id: int) -> str | None:
    path = Path(folder) / f"{id}.avsc"
    if not Path(folder).is_dir():
        raise InputError(f"kafka.registry.folder {folder} is no folder", next_step="make it, or mend its name")
    return read_text(str(path), "kafka.registry.folder's") if path.exists() else None


def _ask(registry: Registry, id: int, patience: float) -> dict[str, Any] | None:
    url = f"{str(registry.url).rstrip('/')}/schemas/ids/{id}"
    deadline, pause = time.monotonic() + patience, PAUSE_S
    while True:
        try:
            status, body = _get(registry, url)
            problem = f"it answered with status {status}"
        except ssl.SSLError as error:
            raise _failed(url, f"TLS failed: {error.reason or error}", "ca, and that it speaks TLS on this port") from None
        except (OSError, http.client.HTTPException) as error:
            status, body, problem = None, b"", str(error) or type(error).__name__
        if status == 200:
            return _read_answer(url, body)
        if status == 404:
            return None
        if status is not None and status not in BUSY:
            look = "the url: redirects are not followed" if 300 <= status < 400 else "url, user and password"
            raise _failed(url, problem, look)
        if time.monotonic() + pause > deadline:
            raise _failed(url, problem, "the url, and that it runs")
        time.sleep(pause)
        pause *= 2


def _get(registry: Registry, url: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    headers = {"Accept": ACCEPT}
    if registry.user is not None:
        login = b64encode(f"{registry.user}:{registry.password()}".encode()).decode()
        headers["Authorization"] = f"Basic {login}"
    host, port = str(parts.hostname), parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        if registry.ca is not None:
            read_text(registry.ca, "kafka.registry.ca")  # ssl's own error does not tell which
        context = ssl.create_default_context(cafile=registry.ca)
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", parts.path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read(MAX_BYTES + 1)
    finally:
        connection.close()


def _read_answer(url: str, body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body) if len(body) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("schema"), str):
        raise _failed(url, f"its answer of {len(body):,} bytes is no schema", "the url: is it that of a schema registry?")
    return answer


def _failed(url: str, problem: str, look: str) -> LakeringError:
    return LakeringError(f"the schema registry did not answer {url}: {problem}",
                         next_step=f"check in the recipe's kafka.registry: {look}; then run again, nothing is lost")  # fmt: skip
