"""Termination notices: a signal, a file, a real HTTP server."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lakering.errors import SettingError, StoppedError
from recipes import read_recipe
from training.checkpoint import read_checkpoint
from training.distributed import World
from training.distributed.notice import Notice, is_given, validate_place
from training.loop import Loop
from training.requests import train_request
from training.step import Step
from training.train import train


@contextmanager
def server(status, text):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/notice"
        finally:
            running.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "text", "expected"), [
    (200, '{"action": "terminate"}', True), (200, "TRUE", True), (200, "FALSE\n", False), (404, "", False), (302, "", False),
    (500, "TRUE", False)])  # fmt: skip
def test_what_a_url_answers(status, text, expected):
    with server(status, text) as url:
        assert is_given(url) is expected


def test_a_url_that_cannot_be_reached_has_said_nothing():
    with server(200, "TRUE") as url:
        pass
    assert is_given(url) is False


@pytest.mark.parametrize(
    "place", ["/a/path", "file:relative", "file://host/path", "ftp://h/x", "http://", "http://[x", "s3://b/k"]
)
def test_other_places_are_refused(place):
    with pytest.raises(SettingError, match="expected file:/path/of/a/file, or a URL of http or https"):
        validate_place(place)


def test_a_first_signal_is_a_notice_and_a_second_what_it_was_before():
    seen: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("before"))
    try:
        with Notice() as notice:
            told = [notice.given]
            os.kill(os.getpid(), signal.SIGTERM)
            told.append(notice.given)
            assert told == [None, "SIGTERM"]
            assert seen == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == ["before"]
        with Notice():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == ["before", "before"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_notice_in_the_last_step_is_acted_on_before_the_validation(write_toy, monkeypatch):
    toy = write_toy()
    request = train_request(read_recipe(toy.recipe))
    call = Step.__call__

    def told(step, batch, global_step, *arguments, **options):
        if global_step == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(step, batch, global_step, *arguments, **options)

    with monkeypatch.context() as last:
        last.setattr(Step, "__call__", told)
        last.setattr(Loop, "validate", lambda loop, _: {} if loop.progress.epoch == 0 else pytest.fail("validated"))
        with pytest.raises(StoppedError, match=r"rank 0: SIGTERM.* after 14 of 14 steps"):
            train(World(), request)
    resumed = train(World(), request)
    assert resumed["record"]["resumed_at"] == 14
    whole = train(World(), {**request, "new": True})
    final, expected = (found["record"]["metrics"]["final"] for found in (resumed, whole))
    assert final == pytest.approx(expected, rel=1e-5)


def test_a_training_that_gets_notice_is_saved_and_ends_as_one_that_never_got_it(write_toy, tmp_path):
    toy = write_toy()
    request = train_request(read_recipe(toy.recipe), spot_notice=f"file:{tmp_path}/notice")
    (tmp_path / "notice").touch()
    with pytest.raises(StoppedError, match=rf"rank 0: notice at file:{tmp_path}/notice.* of 14 steps") as caught:
        train(World(), request)
    assert caught.value.exit_status == 75
    (tmp_path / "notice").unlink()
    resumed = train(World(), request)
    assert 0 < resumed["record"]["resumed_at"] < 14
    whole = train(World(), {**request, "new": True})
    ends = [read_checkpoint(toy.lake, toy.lake.run("toy", found["run"]), "0000000014") for found in (resumed, whole)]
    for name, values in ends[1].weights.items():
        assert values.ravel().tolist() == pytest.approx(ends[0].weights[name].ravel().tolist(), rel=1e-5, abs=1e-6), name
    assert resumed["record"]["metrics"]["final"]["train_loss"] == pytest.approx(whole["record"]["metrics"]["final"]["train_loss"])
