"""A child that kills itself, or is sent a signal, at a stage that the test names."""

import os
from pathlib import Path

HOOK = """
import logging, os, re, signal, threading, time
from pretrain import loop

STAGES, DELAY = os.environ.get("TEST_KILL_AT", "").split(), float(os.environ.get("TEST_KILL_AFTER", "0"))
SIGNAL, TO_PARENT = os.environ.get("TEST_SIGNAL"), os.environ.get("TEST_SIGNAL_TO_PARENT")


made_before = logging.getLogRecordFactory()


def watched(*args, **more):
    record = made_before(*args, **more)
    message = record.getMessage()
    begins = any(re.search(rf"\\b{stage}( \\(\\d+ of \\d+\\))?: making", message) for stage in STAGES)
    if begins or ("train" in STAGES and "checkpoint: made" in message):
        threading.Timer(DELAY, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return record


if STAGES:
    logging.setLogRecordFactory(watched)

save, sent = loop._save, []


def save_then_request_stop(context, state):
    save(context, state)
    if context.ranks.first and not sent:
        sent.append(True)
        os.kill(os.getppid() if TO_PARENT else os.getpid(), getattr(signal, SIGNAL))
        while not context.stop_requested():  # until the launcher has passed it on
            time.sleep(0.01)


if SIGNAL:
    loop._save = save_then_request_stop
"""
"""Code for the child's start, so that a test that gets no processor in time misses no moment: it kills itself a while
after a stage began, or is sent a signal after its first checkpoint."""


def hooked(folder, **settings):
    """The environment of a child that runs the hook as it starts."""
    (folder / "hook").mkdir(exist_ok=True)
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    paths = [str(folder / "hook"), str(Path(__file__).parents[1])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **settings}
