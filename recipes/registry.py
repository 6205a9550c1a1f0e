"""``kafka.registry`` of a recipe: where the schemas are that Avro messages name by a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from pydantic import model_validator

from lakering.documents import Settings
from recipes.secrets import read_password, validate_no_password, where_passwords_are

EXAMPLE = "REGISTRY_PASSWORD"


class Registry(Settings):
    """Either a ``folder`` of files ``ID.avsc``, or the ``url`` of a schema registry (https, or http without encryption): with a
    ``user`` where it asks for one, and where the password is: in the environment or in a file, never here. ``ca`` is the PEM
    file of the authorities that are trusted for https (by default the machine's). Relative paths are relative to the recipe."""

    folder: str | None = None
    url: str | None = None
    user: str | None = None
    password_variable: str | None = None
    password_file: str | None = None
    ca: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_password(cls, value: Any) -> Any:
        validate_no_password(value, EXAMPLE)
        if isinstance(value, dict) and value.get("url") is not None:  # here, where the error does not show the value
            _validate_url(str(value["url"]))
        return value

    @model_validator(mode="after")
    def _fitting(self) -> Registry:
        if (self.folder is None) == (self.url is None):
            raise ValueError("a registry has exactly one of the keys folder, url")
        of_url = {"user": self.user, "password_variable": self.password_variable, "password_file": self.password_file,
                  "ca": self.ca}  # fmt: skip
        unused = [name for name, value in of_url.items() if value is not None]
        if self.url is None:
            if unused:
                raise ValueError(f"{unused[0]} means nothing with folder; take it out")
            return self
        secrets = [name for name in (self.password_variable, self.password_file) if name is not None]
        if len(secrets) != (1 if self.user else 0) or self.user == "" or ":" in (self.user or ""):
            raise ValueError(f"a user, which holds no colon, and one password go together; {where_passwords_are(EXAMPLE)}")
        if self.ca is not None and not self.url.lower().startswith("https:"):
            raise ValueError("ca means nothing without https; write the url with https, or take ca out")
        return self

    def resolved(self, resolve: Callable[[str], str]) -> Registry:
        """The same with every path as ``resolve`` makes it."""
        paths = {name: getattr(self, name) for name in ("folder", "password_file", "ca")}
        return self.model_copy(update={name: resolve(path) for name, path in paths.items() if path is not None})

    def password(self) -> str:
        """The user's password. Raises SettingError or InputError when it is not there."""
        return read_password("kafka.registry", self.password_variable, self.password_file, f"the registry's user {self.user!r}")


def _validate_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number, half of a bracket
        host, port = None, None
    if "@" in url:
        raise ValueError(f"url holds a user or a password; write user, and {where_passwords_are(EXAMPLE)}")
    if not host or port == 0 or parts.scheme not in ("http", "https") or parts.query or parts.fragment or not url.isprintable():
        raise ValueError("url is not that of a registry, such as https://registry:8081")
