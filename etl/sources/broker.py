"""What is asked of a Kafka broker before a stream starts: whether it answers at all, and what it has of a topic.

Spark by itself takes minutes to tell that a broker is down, and goes on without a word over a topic that was deleted and
created again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from lakering.errors import InputError, LakeringError, nearest
from recipes.kafka import Kafka

TIMEOUT_S = 20.0
#: A question waits so long at first, and no longer than that: who is told to stop does not wait for its end.
TRY_S, MAX_TRY_S, MIN_TRY_S = 0.5, 10.0, 0.1
#: So many of the newest messages of each partition tell how large a topic's messages are.
SAMPLE = 100
T = TypeVar("T")
#: Errors that do not go away by waiting, and what to look at.
HOPELESS = {
    KafkaError._AUTHENTICATION: "the user, the password and the mechanism",
    KafkaError.SASL_AUTHENTICATION_FAILED: "the user, the password and the mechanism",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "the mechanism",
    KafkaError._SSL: "ca, certificate and key, and that the broker speaks TLS on this port",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "what the user may do",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "what the user may do",
    KafkaError._INVALID_ARG: "the values",
}
#: librdkafka writes to stderr by itself. What matters of it comes back as errors.
SILENT = logging.Logger("librdkafka", logging.CRITICAL + 1)


@dataclass(frozen=True)
class Topic:
    """A topic as the broker has it: ``id`` tells it from one of the same name before or after it; of each partition the
    ``begin`` is the first offset that is kept, the ``end`` the one behind the last that a stream may read: messages of a
    transaction are behind it until that ends."""

    name: str
    id: str
    begin: dict[int, int]
    end: dict[int, int]

    @property
    def num_messages(self) -> int:
        """How many offsets are kept; of a compacted topic, or one written in transactions, some hold no message."""
        return sum(self.end[partition] - begin for partition, begin in self.begin.items())


def describe_topic(kafka: Kafka, name: str, timeout: float = TIMEOUT_S) -> Topic:
    """Asks for a topic's id, partitions and offsets, for ``timeout`` seconds at most.

    Raises InputError when there is no such topic, LakeringError when the broker is not to be reached or refuses us."""
    return Broker(kafka).describe_topic(name, timeout)


class Broker:
    """A connection to the brokers of a recipe, for questions. No message of its errors holds a password."""

    def __init__(self, kafka: Kafka) -> None:
        self.kafka = kafka
        self._errors: list[KafkaError] = []
        settings: dict[str, Any] = {**kafka.for_client(), "socket.connection.setup.timeout.ms": 5000,
                                    "error_cb": self._errors.append, "allow.auto.create.topics": False}  # fmt: skip
        try:
            self.admin = AdminClient(settings, logger=SILENT)
        except KafkaException as error:  # a file that is no certificate, a key that does not fit
            raise self._refused(error.args[0]) from None

    def create_topic(self, topic: NewTopic, timeout: float = TIMEOUT_S) -> Topic:
        """Makes a topic, and waits until the broker tells of it: what answers us learns of it from what made it.

        Raises LakeringError when it is not made, or there is one of the name."""
        try:
            self.admin.create_topics([topic], request_timeout=timeout)[topic.topic].result()
        except KafkaException as error:
            raise LakeringError(f"topic '{topic.topic}' could not be made: {error.args[0].str()}",
                                next_step="check the name and what the user may do, or make it yourself") from None  # fmt: skip
        return self.await_topic(topic.topic, timeout)

    def await_topic(self, name: str, timeout: float = TIMEOUT_S) -> Topic:
        """As ``describe_topic``, of a topic that the broker may not tell of yet."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self.describe_topic(name, timeout)
            except InputError:
                if time.monotonic() + MIN_TRY_S >= deadline:
                    raise
            time.sleep(MIN_TRY_S)

    def describe_topic(self, name: str, timeout: float = TIMEOUT_S, stop: Callable[[], bool] = lambda: False) -> Topic:
        """See ``describe_topic``. Once ``stop`` says so, a broker that does not answer is waited for no longer."""
        deadline = time.monotonic() + timeout
        names = self.topics(timeout, stop)
        if name not in names:
            raise self._missing(name, names)
        description = self._ask(lambda left: self._one(self.admin.describe_topics(
            TopicCollection([name]), request_timeout=left)), deadline, f"topic '{name}'", name)  # fmt: skip
        places = [TopicPartition(name, partition.id) for partition in description.partitions]
        begin, end = (self._offsets(places, spec, deadline, name) for spec in (OffsetSpec.earliest(), OffsetSpec.latest()))
        return Topic(name, str(description.topic_id), begin, end)

    def topics(self, timeout: float = TIMEOUT_S, stop: Callable[[], bool] = lambda: False) -> set[str]:
        """The names of the topics that the user may see, less Kafka's own."""
        deadline = time.monotonic() + timeout
        found = self._ask(lambda left: self.admin.list_topics(timeout=left), deadline, "its topics", stop=stop)
        return {name for name in found.topics if not name.startswith("__")}

    def mean_message_bytes(self, topic: Topic, timeout: float = TIMEOUT_S) -> float | None:
        """How many bytes the newest messages have on average (key and value); None of a topic that holds none.

        Raises LakeringError when the broker does not hand them on in time."""
        wanted = {partition: min(SAMPLE, end - topic.begin[partition]) for partition, end in topic.end.items()}
        places = [TopicPartition(topic.name, p, topic.end[p] - count) for p, count in wanted.items() if count]
        if not places:
            return None
        consumer = Consumer({**self.kafka.for_client(), "group.id": "lakering-sample", "enable.auto.commit": False,
                             "enable.partition.eof": True}, logger=SILENT)  # fmt: skip
        sizes, ended, deadline = [], 0, time.monotonic() + timeout
        try:
            consumer.assign(places)
            while ended < len(places):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._unreachable(f"the messages of topic '{topic.name}'", None)
                for message in consumer.consume(SAMPLE, min(left, TRY_S)):
                    error = message.error()
                    if error is None:
                        sizes.append(len(message.value() or b"") + len(message.key() or b""))
                    elif error.code() == KafkaError._PARTITION_EOF:
                        ended += 1
                    elif error.code() in HOPELESS:
                        raise self._refused(error)
        finally:
            consumer.close()
        return sum(sizes) / len(sizes) if sizes else None

    def _offsets(self, places: list[TopicPartition], spec: OffsetSpec, deadline: float, name: str) -> dict[int, int]:
        def ask(left: float) -> dict[int, int]:
            answers = self.admin.list_offsets(dict.fromkeys(places, spec), request_timeout=left,
                                              isolation_level=IsolationLevel.READ_COMMITTED)  # fmt: skip
            return {place.partition: answer.result(left + 1).offset for place, answer in answers.items()}

        return dict(sorted(self._ask(ask, deadline, f"the offsets of topic '{name}'", name).items()))

    @staticmethod
    def _one(answers: dict[str, Future[T]]) -> T:
        (answer,) = answers.values()
        return answer.result()

    def _ask(self, question: Callable[[float], T], deadline: float, what: str, topic: str = "",
             stop: Callable[[], bool] = lambda: False) -> T:  # fmt: skip
        """The answer to a question, asked again while that can help. A question that waits for a connection does not tell why
        there is none; the client's own errors do."""
        last: KafkaError | None = None
        patience = TRY_S
        self._errors.clear()
        while True:
            left = deadline - time.monotonic()
            try:
                return question(max(min(left, patience), MIN_TRY_S))
            except KafkaException as error:
                last = error.args[0]
            except TimeoutError:
                pass
            patience = min(2 * patience, MAX_TRY_S)  # a wrong password is told at once, and a slow broker has its time
            self.admin.poll(0)
            for problem in [*self._errors, *([last] if last else [])]:
                if problem.code() in HOPELESS:
                    raise self._refused(problem)
            if last is not None and last.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise self._missing(topic, self.topics(max(left, 1.0)))
            if stop() or time.monotonic() >= deadline:
                raise self._unreachable(what, last)

    def _missing(self, name: str, names: set[str]) -> InputError:
        return InputError(f"the broker ({self.kafka.servers}) has no topic '{name}'{nearest(name, names)}",
                          next_step="create it, or mend its name; one that the user may not describe is not shown")  # fmt: skip

    def _refused(self, problem: KafkaError) -> LakeringError:
        look = HOPELESS.get(problem.code(), "the values")
        return LakeringError(f"the broker ({self.kafka.servers}, security {self.kafka.security}) cannot be used: {problem.str()}",
                             next_step=f"check in the recipe's kafka: {look}")  # fmt: skip

    def _unreachable(self, what: str, last: KafkaError | None) -> LakeringError:
        told = [problem.str() for problem in self._errors if problem.code() != KafkaError._ALL_BROKERS_DOWN]
        reason = told[-1] if told else last.str() if last else "no answer"
        return LakeringError(f"the broker ({self.kafka.servers}, security {self.kafka.security}) did not tell {what}: {reason}",
                             next_step="check that it runs, kafka.servers, kafka.security and the network")  # fmt: skip
