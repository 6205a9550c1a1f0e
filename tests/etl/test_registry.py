"""Where writers' schemas come from, and what is made of them."""

from __future__ import annotations

import json
import socket
import ssl
from base64 import b64encode

import pytest
from certificates import make_certificates

from etl.sources import registry as sources
from etl.sources.registry import WriterSchemas, find_schema, open_schemas
from lakering.errors import InputError, LakeringError, SettingError
from recipes import read_recipe
from recipes.registry import Registry
from schemas.avro import UnusableSchemaError, WriterSchema, parse_writer_schema
from tests.etl.avro_bytes import TRIP, record, trial_registry

PASSWORD = "sesame-open"
SIMPLE = json.dumps(record(("id", "int")))


@pytest.fixture
def served():
    with trial_registry() as registry:
        yield registry


def test_a_folder_holds_schemas_by_their_number(tmp_path):
    registry = Registry(folder=str(tmp_path))
    (tmp_path / "7.avsc").write_text(SIMPLE)
    (tmp_path / "8.avsc").write_text('"string"')
    assert find_schema(registry, 7) == parse_writer_schema(SIMPLE)
    assert str(find_schema(registry, 8)) == "not a record"
    assert find_schema(registry, 9) is None
    with pytest.raises(InputError, match=r"kafka\.registry\.folder .*/none is no folder"):
        find_schema(Registry(folder=str(tmp_path / "none")), 7)


def test_a_registry_is_asked_with_the_users_login(served, monkeypatch):
    monkeypatch.setenv("TEST_REGISTRY_PASSWORD", PASSWORD)
    served.answer(7, 200, {"schema": SIMPLE}, prefix="/base")
    registry = Registry(url=served.url() + "/base/", user="alice", password_variable="TEST_REGISTRY_PASSWORD")
    assert find_schema(registry, 7) == parse_writer_schema(SIMPLE)
    assert served.asked == [("/base/schemas/ids/7", "Basic " + b64encode(f"alice:{PASSWORD}".encode()).decode())]
    assert PASSWORD not in repr(registry) + str(registry.model_dump())
    served.answer(8, 401, b"who?", prefix="/base")
    with pytest.raises(
        LakeringError, match=r"/base/schemas/ids/8: it answered with status 401(?s:.)+user and password"
    ) as raised:
        find_schema(registry, 8)
    assert PASSWORD not in str(raised.value) + repr(raised.value)
    monkeypatch.delenv("TEST_REGISTRY_PASSWORD")
    with pytest.raises(SettingError, match="no password in the environment variable TEST_REGISTRY_PASSWORD"):
        find_schema(registry, 7)


def test_what_a_registry_answers_is_a_schema_or_a_reason(served):
    registry = Registry(url=served.url())
    served.answer(1, 200, {"schema": SIMPLE, "schemaType": "AVRO"})
    served.answer(2, 200, {"schema": "syntax = 'proto3'", "schemaType": "PROTOBUF"})
    served.answer(3, 200, {"schema": SIMPLE, "references": [{"name": "a", "subject": "a", "version": 1}]})
    served.answer(4, 200, {"schema": "{"})
    served.answer(5, 500)
    served.answer(5, 200, {"schema": SIMPLE})
    assert isinstance(find_schema(registry, 1), WriterSchema)
    assert [str(find_schema(registry, id)) for id in (2, 3, 4)] == [
        "PROTOBUF, not AVRO",
        "it refers to other schemas of the registry",
        "not JSON",
    ]
    assert find_schema(registry, 5) == parse_writer_schema(SIMPLE), "who fails once is asked again"
    assert find_schema(registry, 6) is None


def test_a_login_goes_nowhere_else(served, monkeypatch):
    monkeypatch.setenv("TEST_REGISTRY_PASSWORD", PASSWORD)
    with trial_registry() as other:
        served.answer(7, 302, Location=other.url() + "/schemas/ids/7")
        with pytest.raises(LakeringError, match=r"status 302(?s:.)+redirects are not followed"):
            find_schema(Registry(url=served.url(), user="alice", password_variable="TEST_REGISTRY_PASSWORD"), 7)
        assert other.asked == []


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"schema": 1}', b"x" * (sources.MAX_BYTES + 2)])
def test_an_answer_that_is_none_of_a_registry_is_an_error(served, body):
    served.answer(7, 200, body)
    with pytest.raises(LakeringError, match=r"is no schema(?s:.)+is it that of a schema registry"):
        find_schema(Registry(url=served.url()), 7)


def test_a_registry_that_is_down_is_an_error_after_a_while(served):
    served.answer(7, 503)
    with pytest.raises(LakeringError, match=r"status 503(?s:.)+that it runs"):
        find_schema(Registry(url=served.url()), 7, patience=0.7)
    assert len(served.asked) == 2
    with socket.socket() as held:  # bound, and listening to nobody
        held.bind(("127.0.0.1", 0))
        with pytest.raises(LakeringError, match=r"Connection refused(?s:.)+nothing is lost"):
            find_schema(Registry(url=f"http://127.0.0.1:{held.getsockname()[1]}"), 7, patience=0)


def test_tls_takes_a_registry_for_itself_alone(served, tmp_path):
    make_certificates(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    served.server.socket = context.wrap_socket(served.server.socket, server_side=True)
    served.answer(7, 200, {"schema": SIMPLE})
    assert isinstance(find_schema(Registry(url=served.url("https"), ca=str(tmp_path / "ca.pem")), 7), WriterSchema)
    for ca in (str(tmp_path / "other-ca.pem"), None):
        with pytest.raises(LakeringError, match=r"TLS failed: .*CERTIFICATE_VERIFY_FAILED"):
            find_schema(Registry(url=served.url("https"), ca=ca), 7)
    with pytest.raises(InputError, match=r"kafka\.registry\.ca .*/none cannot be read: No such file"):
        find_schema(Registry(url=served.url("https"), ca=str(tmp_path / "none")), 7)
    with pytest.raises(LakeringError, match=r"TLS failed: .*NO_CERTIFICATE"):
        find_schema(Registry(url=served.url("https"), ca=str(tmp_path / "client.key")), 7)


def test_no_more_schemas_are_asked_for_than_a_hundred_at_once(served, caplog):
    schemas = WriterSchemas("trips", registry=Registry(url=served.url()))
    served.answer(3, 200, {"schema": SIMPLE})
    assert schemas.learn([*range(101), 3])
    assert (len(served.asked), list(schemas.known)) == (100, [3])
    assert "topic 'trips' names more than 100 unknown schemas" in caplog.text
    assert not schemas.learn([3]), "what is known is not asked for again"
    assert not schemas.learn([4, 2**31])
    assert len(served.asked) == 101


def test_names_are_followed_as_avro_has_them():
    inner = record(("a", "int"), name="Inner")
    fields = [("a", inner), ("b", "Inner"), ("c", "org.x.Inner"), ("d", record(("e", "org.x.Inner"), name="frame", namespace="y")),
              ("E", {"type": "enum", "name": "mark", "symbols": ["S"]}), ("e", ["null", "mark"])]  # fmt: skip
    schema = parse_writer_schema(json.dumps(record(*fields, namespace="org.x")))
    assert schema.fields == ("a", "b", "c", "d", "E", "e")
    value = json.loads(schema.frame)["fields"][0]["type"]
    one = {"type": "record", "name": "n1", "fields": [{"name": "f0", "type": "long"}]}
    assert [field["type"] for field in value["fields"]] == [
        one, "n1", "n1", {"type": "record", "name": "n2", "fields": [{"name": "f0", "type": "n1"}]},
        {"type": "enum", "name": "n3", "symbols": ["S"]}, ["null", "n3"]]  # fmt: skip
    assert parse_writer_schema(json.dumps(record(("a", ["int", "long"])))).frame.count('["int","long"]') == 1


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (record(("a", ["null", "Trip"])), "Trip holds itself"),
        (record(("a", "Other")), "Other is not defined"),
        (record(("a", record(("b", "int"), name="Trip"))), "Trip is defined twice"),
        (record(("a", "int"), ("a", "int")), "a record with a field twice"),
        (record(("a", {"type": "fixed", "name": "f", "size": 1 << 31})), "a fixed of 2147483648 bytes"),
        ({"type": "array", "items": "int"}, "not a record"),
        ({"type": "record", "fields": []}, "a record without a name"),
        ({"type": "record", "name": "Trip"}, "a record without a list of named fields"),
        (record(("a", 7)), "7 is no schema"),
    ],
)
def test_a_schema_that_no_row_is_read_with_says_why(schema, told):
    with pytest.raises(UnusableSchemaError, match=told):
        parse_writer_schema(json.dumps(schema))


def recipe_of(folder, source: str, registry: str):
    section = f"kafka: {{servers: 'a:1', registry: {registry}}}" if registry else "kafka: {servers: 'a:1'}"
    (folder / "recipe.yaml").write_text(f"name: r\n{section}\ntables: {{trips: {{contract: t.yaml, sources: [{source}]}}}}\n")
    return read_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize(
    ("source", "registry", "line", "told"),
    [
        ("{topic: a, format: json, schema_file: s}", "", 3, "schema_file is of format: avro; the format is json"),
        ("{topic: a, format: avro}", "", 3, "tables.trips.sources.0: format: avro needs the writer's schema"),
        ("{topic: a, format: avro}", "{folder: a, url: 'http://b'}", 2, "exactly one of the keys folder, url"),
        ("{topic: a, format: avro}", "{user: u}", 2, "exactly one of the keys folder, url"),
        ("{topic: a, format: avro}", "{folder: a, ca: b}", 2, "ca means nothing with folder"),
        ("{topic: a, format: avro}", "{url: 'https://me:hush@b'}", 2, "url holds a user or a password"),
        ("{topic: a, format: avro}", "{url: 'ftp://b'}", 2, "such as https://registry:8081"),
        ("{topic: a, format: avro}", "{url: 'https://b:x'}", 2, "such as https://registry:8081"),
        ("{topic: a, format: avro}", "{url: 'https://b?c=d'}", 2, "such as https://registry:8081"),
        ("{topic: a, format: avro}", "{url: 'http://b', password: hush}", 2, "a password does not stand in a recipe"),
        ("{topic: a, format: avro}", "{url: 'http://b', user: u}", 2, "one password go together"),
        ("{topic: a, format: avro}", "{url: 'http://b', password_file: u}", 2, "one password go together"),
        (
            "{topic: a, format: avro}",
            "{url: 'http://b', user: u, password_variable: A, password_file: u}",
            2,
            "one password go together",
        ),
        ("{topic: a, format: avro}", "{url: 'http://b', user: u, password_variable: 'hush b'}", 2, "not a variable's name"),
        ("{topic: a, format: avro}", "{url: 'http://b', ca: c}", 2, "ca means nothing without https"),
    ],
)
def test_settings_that_mean_nothing_are_named(tmp_path, source, registry, line, told):
    with pytest.raises(SettingError) as raised:
        recipe_of(tmp_path, source, registry)
    assert told in str(raised.value)
    assert f"recipe.yaml:{line}: " in str(raised.value)
    assert "hush" not in str(raised.value)


def test_paths_are_relative_to_the_recipe(tmp_path):
    recipe = recipe_of(tmp_path, "{topic: a, format: avro, schema_file: s/t.avsc}", "{folder: avro}")
    assert recipe.kafka
    assert recipe.kafka.registry == Registry(folder=str(tmp_path / "avro"))
    (source,) = recipe.settings.tables["trips"].topics
    with pytest.raises(InputError, match=rf"schema_file {tmp_path}/s/t\.avsc cannot be read: No such file"):
        open_schemas(recipe, source)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "t.avsc").write_text('"int"')
    with pytest.raises(InputError, match=rf"t\.avsc: not a record(?s:.)+{recipe.path}"):
        open_schemas(recipe, source)
    (tmp_path / "s" / "t.avsc").write_text(json.dumps(TRIP))
    found = open_schemas(recipe, source)
    assert found
    assert not found.has_ids
