from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys

import pytest

from governance import log
from governance.first_use import add_compile_seconds


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def plain(monkeypatch, caplog):
    """Plain lines, as in a job, with a clock that the test sets."""
    clock = Clock()
    monkeypatch.setattr(log, "time", clock)
    logger = logging.getLogger("assay")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])
    caplog.set_level(logging.INFO, logger="assay")
    monkeypatch.setattr(sys, "stderr", open(os.devnull, "w"))  # noqa: SIM115
    return clock, caplog


def test_a_job_has_a_line_every_ten_seconds_and_not_each_step(plain):
    clock, caplog = plain
    with log.progress("train", 20_000, "steps", done=100) as advance:
        for step in range(250):
            clock.now += 0.1
            advance(1, f"loss {step}")
    output = [record.getMessage() for record in caplog.records]
    assert output == [
        "train: 200 of 20000 steps, 10 steps/s, 0:33:00 left, loss 99",
        "train: 300 of 20000 steps, 10 steps/s, 0:32:50 left, loss 199",
    ]


def test_work_that_was_found_makes_no_rate(plain):
    clock, caplog = plain
    with log.progress("claims", 1_000, "tokens") as advance:
        advance(500, found=True)
        for _ in range(10):
            clock.now += 1
            advance(10)
    assert caplog.records[-1].getMessage() == "claims: 600 of 1000 tokens, 10 tokens/s, 0:00:40 left"
    for whole, unit, seconds, done, line in (
        (4_000_000, "tokens", 100, 2_000_000, "2,000,000 of 4,000,000 tokens, 20,000 tokens/s, 0:01:40 left"),
        (1_000_000, "tokens", 1000, 999_999.7, "1,000,000 of 1,000,000 tokens, 1,000 tokens/s, 0:00:00 left"),
        (1, "shards", 5000, 0.25, "0.25 of 1 shards, 0.00005 shards/s, 4:10:00 left"),
    ):
        with log.progress("claims", whole, unit) as advance:
            clock.now += seconds
            advance(done)
        assert caplog.records[-1].getMessage() == f"claims: {line}"


def test_the_last_step_of_a_long_job_is_reported_and_a_short_job_is_silent(plain):
    clock, caplog = plain
    for seconds, lines in ((1.0, 0), (4.0, 2)):
        caplog.clear()
        with log.progress("train", 4, "steps") as advance:
            for _ in range(4):
                clock.now += seconds
                advance(1)
        assert len(caplog.records) == lines
    assert caplog.records[-1].getMessage() == "train: 4 of 4 steps, 0.25 steps/s, 0:00:00 left"


@pytest.mark.parametrize("columns", ["160", "80"])
def test_a_terminal_has_one_bar_that_messages_do_not_tear_or_a_narrow_window_cut(columns):
    code = (
        "from governance.log import get_logger, progress, run_steps, set_up_logging\n"
        "set_up_logging()\n"
        "with run_steps(['x'] * 9 + ['decontaminate', 'y'], {'y': 99}), progress('decontaminate', 4, 's') as advance:\n"
        "    for step in range(4):\n"
        "        advance(1, 'loss 3.25, 41.0% MFU')\n"
        "        get_logger('x').info('a message of step %d', step)\n"
    )
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code], stderr=theirs, env={**os.environ, "COLUMNS": columns, "TERM": "xterm"}
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert child.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert text.count("100%") >= 1
    assert shown.rstrip().endswith(b"\x1b[2K"), "the bar's line is erased at its end"
    assert "decontaminate (10 of 11)" in text
    assert "about 0:01:39 in all" in text
    assert "loss 3.25, 41.0% MFU" in text
    assert all(f"a message of step {step}" in text for step in range(4))


def test_a_forecast_leaves_compilation_out(plain):
    clock, caplog = plain
    with log.progress("bias", 40, "shards") as advance:
        clock.now += 100.0
        add_compile_seconds(90.0)
        for _ in range(10):
            advance(1)
            clock.now += 1.0
    assert caplog.records[0].getMessage() == "bias: 1 of 40 shards, 0.1 shards/s, 0:06:30 left"


def test_a_step_has_its_number_and_the_time_left_of_the_whole_run(plain):
    clock, caplog = plain

    def line(step: str) -> str:
        caplog.clear()
        with log.progress(step, 40, "shards") as advance:
            for _ in range(11):
                clock.now += 1.0
                advance(1)
        return caplog.records[-1].getMessage()

    assert line("clean") == "clean: 10 of 40 shards, 1 shards/s, 0:00:30 left"
    with log.run_steps(("ingest", "clean", "dedup", "encode"), {"dedup": 90.0, "encode": 60.0}):
        assert line("clean") == "clean (2 of 4): 10 of 40 shards, 1 shards/s, 0:00:30 left, about 0:03:00 in all"
        with log.run_steps(("clean",), {}):  # the whole run counts, not a part of it
            assert line("clean").startswith("clean (2 of 4): ")
        assert line("ingest") == "ingest (1 of 4): 10 of 40 shards, 1 shards/s, 0:00:30 left", "clean is unknown"
        assert line("encode") == "encode (4 of 4): 10 of 40 shards, 1 shards/s, 0:00:30 left"
        assert line("verify").startswith("verify: ")
        assert log.rest_of_run("dedup") == ", about 0:02:30 left in all"
        assert log.rest_of_run("clean") == "", "its own time is unknown"
        assert log.rest_of_run("verify") == ""
    assert line("clean").startswith("clean: ")


def test_a_log_that_cannot_be_written_prints_no_traceback(monkeypatch, capsys):
    """W&B keeps a log of its own in the run's folder, whose disk may be full."""
    monkeypatch.setattr(logging, "raiseExceptions", True)
    kept = logging.getLogger("assay").handlers[:]
    log.set_up_logging()
    other = logging.getLogger("a library")
    other.addHandler(full := logging.FileHandler("/dev/full"))
    other.warning("a line")
    other.removeHandler(full)
    logging.getLogger("assay").handlers[:] = kept
    assert capsys.readouterr().err == ""
