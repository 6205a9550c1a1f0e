"""What is asked of a broker before a stream starts, and how a recipe says who asks."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from broker import Broker as TrialBroker
from confluent_kafka.admin import AdminClient, NewTopic
from pyspark.sql import SparkSession

from etl.sources.broker import Broker, Topic, describe_topic
from lakering.errors import InputError, LakeringError, SettingError
from recipes import read_recipe
from recipes.kafka import Kafka
from tests.etl.conftest import PASSWORD
from tests.etl.streams import create_topic, delete_topic

WRONG = "through-the-looking-glass"


@pytest.fixture
def reach(secured: TrialBroker, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kafka]:
    """Settings for a listener of it, as a recipe would have them."""

    def settings(listener: str, password: str = PASSWORD, **more: str) -> Kafka:
        monkeypatch.setenv("TEST_KAFKA_PASSWORD", password)
        sasl = {"mechanism": "SCRAM-SHA-512", "user": "alice", "password_variable": "TEST_KAFKA_PASSWORD"}
        parts = {"servers": secured.servers_of(listener), "security": listener}
        parts |= sasl if listener.startswith("SASL") else {}
        parts |= {"ca": str(secured.folder / "ca.pem")} if listener.endswith("SSL") else {}
        return Kafka(**{**parts, **more})

    return settings


def test_a_topic_is_told_with_its_partitions_and_offsets(reach):
    topic = describe_topic(reach("PLAINTEXT"), "trips")
    assert topic == Topic("trips", topic.id, {0: 0, 1: 0, 2: 0}, {0: 3, 1: 2, 2: 0})
    assert topic.num_messages == 5
    assert describe_topic(reach("PLAINTEXT"), "trips") == topic, "its id stays"


def test_a_topic_made_again_has_another_id(broker):
    admin = AdminClient({"bootstrap.servers": broker.servers})
    kafka, ids = Kafka(servers=broker.servers), set()
    for _ in range(2):
        create_topic(admin, NewTopic("test_broker_again", 1))
        ids.add(describe_topic(kafka, "test_broker_again").id)
        delete_topic(admin, "test_broker_again")
    assert len(ids) == 2


def test_a_topic_that_the_broker_does_not_tell_of_yet_is_waited_for(broker):
    ours, admin = Broker(Kafka(servers=broker.servers)), AdminClient({"bootstrap.servers": broker.servers})
    with ThreadPoolExecutor(1) as beside:
        awaited = beside.submit(ours.await_topic, "test_broker_awaited")
        with pytest.raises(InputError, match="has no topic 'test_broker_awaited'"):
            ours.await_topic("test_broker_awaited", timeout=3)
        assert not awaited.done()
        create_topic(admin, NewTopic("test_broker_awaited", 3))
        assert awaited.result().end == {0: 0, 1: 0, 2: 0}


def test_a_topic_is_made_and_told_and_not_made_twice(broker):
    ours = Broker(Kafka(servers=broker.servers))
    assert ours.create_topic(NewTopic("test_broker_made", 2)).end == {0: 0, 1: 0}
    with pytest.raises(LakeringError, match=r"topic 'test_broker_made' could not be made: .*already exists"):
        ours.create_topic(NewTopic("test_broker_made", 2))


def test_a_topic_that_is_missing_is_told_with_the_nearest(reach):
    with pytest.raises(InputError, match=r"has no topic 'trip'; did you mean 'trips'\? \(known: trips\)"):
        describe_topic(reach("PLAINTEXT"), "trip")


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("listener", ["SASL_PLAINTEXT", "SASL_SSL"])
def test_a_user_is_let_in_by_password_and_by_no_other(reach, listener, mechanism, capfd):
    assert describe_topic(reach(listener, mechanism=mechanism), "trips").num_messages == 5
    started = time.monotonic()
    with pytest.raises(LakeringError) as caught:
        describe_topic(reach(listener, password=WRONG, mechanism=mechanism), "trips", timeout=60)
    assert time.monotonic() - started < 30, "it does not wait for what waiting cannot mend"
    assert "SASL authentication error" in str(caught.value)
    assert "check in the recipe's kafka: the user, the password" in str(caught.value)
    assert WRONG not in str(caught.value) + repr(caught.value) + "".join(capfd.readouterr())


def test_a_password_comes_from_a_file_too_and_shows_nowhere(reach, secured, tmp_path):
    (tmp_path / "secret").write_text(PASSWORD + "\n")
    plain = reach("SASL_SSL", password="")
    kafka = Kafka(**{**plain.model_dump(exclude={"password_variable"}), "password_file": str(tmp_path / "secret")})
    assert describe_topic(kafka, "trips").num_messages == 5
    assert PASSWORD not in repr(kafka) + str(kafka.model_dump())
    with pytest.raises(SettingError, match="there is no password in the environment variable TEST_KAFKA_PASSWORD"):
        describe_topic(plain, "trips")


@pytest.mark.faults
def test_tls_takes_the_broker_for_itself_alone_and_never_falls_back(reach, secured):
    folder = secured.folder
    shown = {"certificate": str(folder / "client.pem"), "key": str(folder / "client.key")}
    assert describe_topic(reach("SSL", **shown), "trips").num_messages == 5
    started = time.monotonic()
    for listener in ("SSL", "SASL_SSL"):
        with pytest.raises(LakeringError, match=r"SSL handshake failed.*certificate verify failed(?s:.)*check .*: ca, cert"):
            describe_topic(reach(listener, ca=str(folder / "other-ca.pem")), "trips", timeout=60)
    assert time.monotonic() - started < 30, "it does not wait for what waiting cannot mend"
    with pytest.raises(LakeringError, match="certificate verify failed"):  # it is signed, but for 127.0.0.1
        describe_topic(reach("SSL", servers=secured.servers_of("SSL").replace("127.0.0.1", "localhost")), "trips", timeout=60)
    # Which of the two is said depends on whether the broker hangs up before it is read.
    with pytest.raises(LakeringError, match=r"PLAINTEXT broker listener|SSL connection closed by peer"):
        describe_topic(reach("SSL", servers=secured.servers), "trips", timeout=10)
    with pytest.raises(LakeringError, match="did not tell its topics"):
        describe_topic(reach("PLAINTEXT", servers=secured.servers_of("SSL")), "trips", timeout=2)
    with pytest.raises(InputError, match=r"kafka.ca .*/none.pem cannot be read: No such file"):
        describe_topic(reach("SSL", ca=str(folder / "none.pem")), "trips")
    with pytest.raises(LakeringError, match="no certificate or crl found"):
        describe_topic(reach("SSL", ca=str(folder / "server.properties")), "trips")


@pytest.mark.parametrize("security", ["SSL", "SASL_SSL"])
def test_who_listens_without_tls_is_sent_a_handshake_and_nothing_else(reach, secured, security):
    heard: list[bytes] = []

    def listen() -> None:
        with contextlib.suppress(OSError):  # shut down
            while True:
                connection, _ = held.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(1)
                    heard.append(connection.recv(1 << 16))
                    connection.sendall(b"no TLS here\n")  # and hangs up

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        listener = threading.Thread(target=listen)
        listener.start()
        try:
            # Which of the two is said depends on whether the answer is read before the end.
            with pytest.raises(LakeringError, match=r"SSL handshake failed|did not tell its topics"):
                describe_topic(reach(security, servers=f"127.0.0.1:{held.getsockname()[1]}"), "trips", timeout=3)
        finally:
            held.shutdown(socket.SHUT_RDWR)
            listener.join()
    assert any(heard)
    for sent in filter(None, heard):
        assert sent[:2] == b"\x16\x03", "a TLS record of a handshake"
        assert b"alice" not in sent
        assert PASSWORD.encode() not in sent


def test_a_broker_that_is_down_is_told_in_time_and_quietly(capfd):
    with socket.socket() as held:  # bound, and listening to nobody
        held.bind(("127.0.0.1", 0))
        kafka = Kafka(servers=f"127.0.0.1:{held.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(LakeringError, match=rf"broker \({kafka.servers}, .* did not tell its topics: .*Connection refused"):
            describe_topic(kafka, "trips", timeout=2)
    assert time.monotonic() - started < 10
    assert capfd.readouterr() == ("", "")


def test_spark_reads_by_the_same_settings_and_shows_no_secret(reach, secured, spark: SparkSession):
    shown = {"certificate": str(secured.folder / "client.pem"), "key": str(secured.folder / "client.key")}
    for kafka in (reach("SASL_PLAINTEXT", mechanism="PLAIN"), reach("SASL_SSL", **shown)):
        rows = spark.read.format("kafka").options(**kafka.for_spark(), subscribe="trips").load()
        assert sorted(bytes(row.value) for row in rows.collect()) == [b"0", b"1", b"2", b"3", b"4"]
    stream = spark.readStream.format("kafka").options(**kafka.for_spark(), subscribe="trips").load()
    query = stream.writeStream.format("noop").trigger(availableNow=True).start()
    assert query.awaitTermination(60)
    told = [rows._jdf.queryExecution().toString(), str(query.lastProgress), query._jsq.explainInternal(True)]
    key = "".join((secured.folder / "client.key").read_text().splitlines()[1:-1])
    for secret in (PASSWORD, PASSWORD.replace("\\", "\\\\"), "wonder", key):
        assert secret not in "".join(told).replace("\n", "")


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("servers: localhost", "'localhost' is not host:port, such as localhost:9092"),
        ("servers: 'a:1,u:p@b:2'", "servers hold a user or a password; write host:port"),
        ("{servers: 'a:1', password: hush}", "a password does not stand in a recipe or a flag; name the environment variable"),
        ("{servers: 'a:1', security: SASL_SSL, user: u, password_variable: hush!}", "password_variable is not a variable's name"),
        ("{servers: 'a:1', security: SASL_SSL, user: u, password_variable: ''}", "password_variable is not a variable's name"),
        ("{servers: 'a:1', security: SASL_SSL, user: u, password_variable: P}", "needs a mechanism, a user and one password"),
        ("{servers: 'a:1', security: SSL, user: u}", "user means nothing with security: SSL; set security: SASL_SSL"),
        ("{servers: 'a:1', ca: ca.pem}", "ca means nothing with security: PLAINTEXT; set security: SSL or SASL_SSL"),
        ("{servers: 'a:1', security: SSL, key: k.pem}", "certificate and key go together"),
        ("{servers: 'a:1', security: SASL, user: u}", "Input should be 'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or 'SASL_SSL'"),
    ],
)
def test_settings_that_mean_nothing_are_named(tmp_path, section, told):
    recipe = tmp_path / "recipe.yaml"
    section = section if section.startswith("{") else "{" + section + "}"
    recipe.write_text(
        f"name: trips\nkafka: {section}\ntables: {{trips: {{contract: t.yaml, sources: [{{files: x, format: csv}}]}}}}\n"
    )
    with pytest.raises(SettingError) as caught:
        read_recipe(recipe)
    assert told in str(caught.value)
    assert f"{recipe}:2: kafka" in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "u:p" not in str(caught.value)


def test_paths_are_relative_to_the_recipe(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    text = "name: trips\nkafka: {servers: 'a:1, b:2', security: SSL, ca: ca.pem}\n"
    recipe.write_text(text + "tables: {trips: {contract: t.yaml, sources: [{files: x, format: csv}]}}\n")
    assert read_recipe(recipe).kafka == Kafka(servers="a:1,b:2", security="SSL", ca=str(tmp_path / "ca.pem"))
