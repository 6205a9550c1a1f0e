"""The Kafka broker that trials and tests run on."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from broker import Broker, BrokerError
from cluster import free_ports
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "kafka.py"


def send(servers: str, topic: str, *values: bytes) -> None:
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic(topic, 1)])[topic].result(30)
    producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(30) == 0


def read(servers: str, topic: str, number: int) -> list[bytes | None]:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "test"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    values = [message.value() for message in consumer.consume(number, timeout=30)]
    consumer.close()
    return values


@pytest.mark.faults
def test_a_killed_broker_comes_back_with_its_messages_on_its_port(tmp_path):
    broker = Broker(tmp_path / "broker", settings={"log.flush.interval.messages": 1})
    servers = broker.start()
    try:
        send(servers, "kept", b"one", b"two")
        assert broker.kill()
        assert not broker.running()
        assert broker.start() == servers
        assert read(servers, "kept", 2) == [b"one", b"two"]
        with pytest.raises(BrokerError, match=f"a broker is running: {servers}"):
            broker.start()
    finally:
        broker.stop()
    assert not broker.stop(), "nothing was left"


def test_messages_are_kept_in_the_order_they_were_sent(broker):
    send(broker.servers, "test_kafka", b"one", b"two", b"three")
    assert read(broker.servers, "test_kafka", 3) == [b"one", b"two", b"three"]


def test_another_process_finds_the_broker_and_the_command_tells_where_it_is(broker):
    told = subprocess.run(
        [sys.executable, str(SCRIPT), "status", "--folder", str(broker.folder)], capture_output=True, text=True, timeout=60
    )
    assert told.stdout == f"bootstrap servers: {broker.servers}\n"


def test_a_port_that_another_process_took_meanwhile_is_replaced(tmp_path, monkeypatch):
    made = Broker(tmp_path)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        taken, free = held.getsockname()[1], free_ports(3)
        chosen = iter([[free[0], taken], free[1:]])
        monkeypatch.setattr("broker.free_ports", lambda number: next(chosen))
        try:
            assert made.start() == f"127.0.0.1:{free[2]}"
            assert made.running()
        finally:
            made.stop()


def test_a_broker_that_cannot_start_tells_what_its_log_says(tmp_path):
    broker = Broker(tmp_path, settings={"log.retention.ms": "never"})
    with pytest.raises(BrokerError, match=r"(?s)Invalid value never for configuration log\.retention\.ms"):
        broker.start()
    assert not broker.running()
