"""An S3 server in a process of its own, which checks the signature of every request, for tests that name its fixtures."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

from lakering.storage import Storage, StorageSettings

REGION = "eu-west-1"
ALLOWED = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]})


class Server:
    """Where the server is, and the one user that it knows."""

    def __init__(self, endpoint: str, key: str, secret: str, log: Path, process: subprocess.Popen) -> None:
        self.endpoint, self.key, self.secret, self._log, self._process = endpoint, key, secret, log, process

    @property
    def settings(self) -> StorageSettings:
        return StorageSettings(endpoint=self.endpoint, region=REGION, path_style=True)

    def num_reads(self, path: str) -> int:
        """How often any part of a file was read so far."""
        return self._log.read_text().count(f"GET /{path} ")

    @contextmanager
    def silent(self) -> Iterator[None]:
        """It answers nothing any more, and hangs up on nobody."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stdout=stream, stderr=stream
        )
    try:
        endpoint = _endpoint_of(process, log)
        client = {"endpoint_url": endpoint, "region_name": REGION, "aws_access_key_id": "setup", "aws_secret_access_key": "setup"}
        boto3.client("s3", **client).create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
        users = boto3.client("iam", **client)
        users.create_user(UserName="trainer")
        users.put_user_policy(UserName="trainer", PolicyName="all", PolicyDocument=ALLOWED)
        made = users.create_access_key(UserName="trainer")["AccessKey"]
        # From here on, no request more is let in without that user's signature.
        urllib.request.urlopen(
            urllib.request.Request(f"{endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        ).close()
        yield Server(endpoint, made["AccessKeyId"], made["SecretAccessKey"], log, process)
    finally:
        process.kill()
        process.wait()


def _endpoint_of(process, log, patience: float = 60) -> str:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"Running on (http://\S+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text()}")


@pytest.fixture
def credentials(server, monkeypatch):
    """Stands in the environment alone, as on a cluster."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def storage(server, credentials, request) -> Storage:
    return Storage(f"s3://bucket/{re.sub('[^a-z0-9]+', '-', request.node.originalname)}", server.settings)
