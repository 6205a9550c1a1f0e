"""A recipe's ``kafka``: where the brokers are and how to prove oneself to them, for Spark's connector and for confluent-kafka.

Neither ever falls back to another protocol than ``security`` names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from pydantic import field_validator, model_validator

from lakering.documents import Settings
from recipes.registry import Registry
from recipes.secrets import read_password, read_text, validate_no_password, where_passwords_are

SERVER = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
EXAMPLE = "KAFKA_PASSWORD"
LOGIN_MODULES = {"PLAIN": "plain.PlainLoginModule", "SCRAM-SHA-256": "scram.ScramLoginModule",
                 "SCRAM-SHA-512": "scram.ScramLoginModule"}  # fmt: skip


class Kafka(Settings):
    """``servers`` are ``host:port``, with commas; ``security`` is Kafka's own name of a protocol.

    With SASL a ``mechanism``, a ``user``, and where the password is: in the environment or in a file, never here. With SSL
    ``ca`` is the PEM file of the authorities that are trusted (by default the machine's), ``certificate`` and ``key`` (not
    encrypted, PKCS 8) are PEM files that this side shows. ``registry`` is where the schemas of Avro messages are. Relative paths
    are relative to the recipe."""

    servers: str
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    user: str | None = None
    password_variable: str | None = None
    password_file: str | None = None
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    registry: Registry | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_password(cls, value: Any) -> Any:
        validate_no_password(value, EXAMPLE)
        if isinstance(value, dict) and "@" in str(value.get("servers")):  # here, where the error does not show the value
            raise ValueError("servers hold a user or a password; write host:port")
        return value

    @field_validator("servers")
    @classmethod
    def _addresses(cls, text: str) -> str:
        servers = [server.strip() for server in text.split(",")]
        for server in servers:
            match = SERVER.fullmatch(server)
            if not match or not 0 < int(match[2]) < 65536:
                raise ValueError(f"{server!r} is not host:port, such as localhost:9092")
        return ",".join(servers)

    @model_validator(mode="after")
    def _fitting(self) -> Kafka:
        secrets = [name for name in (self.password_variable, self.password_file) if name is not None]
        of_sasl = {"mechanism": self.mechanism, "user": self.user, "password_variable": self.password_variable,
                   "password_file": self.password_file}  # fmt: skip
        of_ssl = {"ca": self.ca, "certificate": self.certificate, "key": self.key}
        if self.has_sasl and (self.mechanism is None or not self.user or len(secrets) != 1):
            raise ValueError(
                f"security: {self.security} needs a mechanism, a user and one password; {where_passwords_are(EXAMPLE)}"
            )
        unused = [] if self.has_sasl else [name for name, value in of_sasl.items() if value is not None]
        unused += [] if self.has_ssl else [name for name, value in of_ssl.items() if value is not None]
        if unused:
            other = "SASL_SSL or SASL_PLAINTEXT" if unused[0] in of_sasl else "SSL or SASL_SSL"
            raise ValueError(f"{unused[0]} means nothing with security: {self.security}; set security: {other}, or take it out")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")
        return self

    @property
    def has_sasl(self) -> bool:
        return self.security.startswith("SASL")

    @property
    def has_ssl(self) -> bool:
        return self.security.endswith("SSL")

    def resolved(self, resolve: Callable[[str], str]) -> Kafka:
        """The same with every path as ``resolve`` makes it."""
        paths = {name: getattr(self, name) for name in ("password_file", "ca", "certificate", "key")}
        update: dict[str, Any] = {name: resolve(path) for name, path in paths.items() if path is not None}
        update["registry"] = self.registry and self.registry.resolved(resolve)
        return self.model_copy(update=update)

    def password(self) -> str:
        """The password; a file's last line end is no part of it. Raises SettingError or InputError when it is not there."""
        return read_password("kafka", self.password_variable, self.password_file, f"Kafka's user {self.user!r}")

    def for_client(self) -> dict[str, str]:
        """The settings as confluent-kafka (librdkafka) takes them. They hold the password: log them nowhere."""
        options = {"bootstrap.servers": self.servers, "security.protocol": self.security}
        if self.has_sasl:
            options |= {"sasl.mechanism": str(self.mechanism), "sasl.username": str(self.user), "sasl.password": self.password()}
        for name, path in (("ca", self.ca), ("certificate", self.certificate), ("key", self.key)):
            if path is not None:
                read_text(path, f"kafka.{name}")  # librdkafka's own error does not tell which
                options[f"ssl.{name}.location"] = path
        return options

    def for_spark(self) -> dict[str, str]:
        """The settings as options of Spark's connector. They hold the password and the key, which Spark redacts where it shows
        options (``spark.sql.redaction.options.regex``), but for one place: the analyzed plan of a stream that is not started, as
        an error of analysis tells it. So nothing that can fail is done to such a stream but in its batches. Certificates go as
        text: executors may not have the files."""
        options = {"kafka.bootstrap.servers": self.servers, "kafka.security.protocol": self.security}
        if self.has_sasl:
            module = f"org.apache.kafka.common.security.{LOGIN_MODULES[str(self.mechanism)]}"
            login = f"{module} required username={_quoted(str(self.user))} password={_quoted(self.password())};"
            options |= {"kafka.sasl.mechanism": str(self.mechanism), "kafka.sasl.jaas.config": login}
        if self.ca is not None:
            options |= {"kafka.ssl.truststore.type": "PEM", "kafka.ssl.truststore.certificates": read_text(self.ca, "kafka.ca")}
        if self.certificate is not None and self.key is not None:
            options |= {"kafka.ssl.keystore.type": "PEM",
                        "kafka.ssl.keystore.certificate.chain": read_text(self.certificate, "kafka.certificate"),
                        "kafka.ssl.keystore.key": read_text(self.key, "kafka.key")}  # fmt: skip
        return options


def _quoted(text: str) -> str:
    """A text as a JAAS line has it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
