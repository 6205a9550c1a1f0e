"""A stream from a broker that asks for a password: nobody who looks on learns it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from html import unescape
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from broker import Broker

from tests.conftest import submit_command
from tests.etl.conftest import PASSWORD, Trips
from tests.etl.streams import StreamedTrips, trip
from tests.processes import command_lines

ROOT = Path(__file__).resolve().parents[2]
JOB = "etl/jobs/ingest_stream.py"
WRONG = "through-the-looking-glass"
PATIENCE_S = 300.0
#: What Spark's pages link to, and what they do not.
PAGES = ["/", "/environment/", "/SQL/", "/StreamingQuery/", "/api/v1/applications"]
OF_AN_APPLICATION = ["environment", "jobs", "stages", "executors", "sql?details=true&planDescription=true&length=1000"]


@pytest.fixture
def stream(trips: Trips, secured: Broker, request: pytest.FixtureRequest) -> StreamedTrips:
    made = StreamedTrips(trips, secured.servers, re.sub(r"\W", "-", request.node.name))
    made.create()
    made.send(trip(id=1), trip(id=2), b"{")
    return made


def secured_recipe(stream: StreamedTrips, secured: Broker) -> Path:
    """The recipe with all that one can show a broker: a password, and a certificate with its key."""
    text = stream.path.read_text()
    kafka = (f"kafka: {{servers: '{secured.servers_of('SASL_SSL')}', security: SASL_SSL, mechanism: SCRAM-SHA-512, user: alice, "
             f"password_variable: TEST_KAFKA_PASSWORD, ca: '{secured.folder}/ca.pem', certificate: '{secured.folder}/client.pem', "
             f"key: '{secured.folder}/client.key'}}")  # fmt: skip
    path = stream.trips.folder / "secured.yaml"
    path.write_text(re.sub(r"kafka: .*", lambda _: kafka, text))
    return path


def test_a_wrong_password_ends_the_job_with_1_at_once_and_is_told_nowhere(stream, secured, run_here, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KAFKA_PASSWORD", WRONG)
    before, started = signal.getsignal(signal.SIGTERM), time.monotonic()
    try:
        done = run_here(JOB, "--recipe", secured_recipe(stream, secured), "--once", "--summary", tmp_path / "summary.json")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - started < 20
    assert done.returncode == 1
    assert "SASL authentication error" in done.stderr
    assert "check in the recipe's kafka: the user, the password and the mechanism" in done.stderr
    assert WRONG not in done.stdout + done.stderr + (tmp_path / "summary.json").read_text()


def read_page(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return str(answer.read().decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:  # what came into being since the page before, or is no page
        return error.read().decode("utf-8", "replace")


def crawl(root: str) -> dict[str, str]:
    """All pages of a Spark UI, its REST interface among them."""
    applications = json.loads(read_page(f"{root}/api/v1/applications"))
    wanted = [root + page for page in PAGES]
    wanted += [f"{root}/api/v1/applications/{each['id']}/{page}" for each in applications for page in OF_AN_APPLICATION]
    pages: dict[str, str] = {}
    while wanted and len(pages) < 300:
        address = wanted.pop(0)
        if address in pages or re.search("/kill|/static/|[.]sort=|downloadEventLog|/logs", address):
            continue
        pages[address] = text = read_page(address)
        links = [
            urljoin(address, unescape(link)).replace(" ", "%20") for link in re.findall(r"""(?:href|src)=["']([^"'#]+)""", text)
        ]
        wanted += [link for link in links if urlsplit(link).netloc == urlsplit(root).netloc]
    return pages


@pytest.mark.faults
def test_logs_errors_summary_and_ui_of_a_secured_stream_show_no_secret(stream, secured, spark_conf_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KAFKA_PASSWORD", PASSWORD)
    log, summary = tmp_path / "log", tmp_path / "summary.json"
    command = submit_command(
        spark_conf_dir, JOB, "--recipe", str(secured_recipe(stream, secured)), "--summary", str(summary), "--every", "500ms",
        conf=("spark.ui.enabled=true", "spark.ui.port=0", "spark.log.level=INFO"))  # fmt: skip
    command.insert(1, "--verbose")
    with log.open("w") as out:
        job = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "micro-batch " not in log.read_text():
            assert time.monotonic() < deadline
            assert job.poll() is None, log.read_text()[-5000:]
            time.sleep(0.1)
        port = re.search(r"Started ServerConnector.*:(\d+)\}", log.read_text())
        assert port
        pages = crawl(f"http://127.0.0.1:{port[1]}")
        # Of the job alone: a trial broker that is set up beside it is given its passwords so.
        arguments = "\n".join(command_lines(job.pid))
        assert arguments.count("ingest_stream.py") >= 2, "the JVM's and Python's"
        stream.delete()  # so that it ends inside Spark, with all that Spark tells of that
        assert job.wait(PATIENCE_S) == 2, log.read_text()[-5000:]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert [row["id"] for row in stream.trips.rows()] == [1, 2]
    assert re.search(f"^error: .*has no topic '{stream.topic}'", log.read_text(), re.MULTILINE)
    assert "StreamingQueryException" in log.read_text() or "ERROR MicroBatchExecution" in log.read_text()
    shown = {**pages, "log": log.read_text(), "summary": summary.read_text(), "arguments": arguments}
    assert sum("/SQL/execution/" in page for page in pages) > 3, "the plans were among what was read"
    assert any("StreamingQuery/statistics" in page for page in pages)
    key = (secured.folder / "client.key").read_text().splitlines()[1]
    for secret in ("wonder", "land\\9", "land\\\\9", key):
        assert [name for name, text in shown.items() if secret in unescape(text)] == []
