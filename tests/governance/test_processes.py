"""A Ctrl-C that a library swallows still ends the process at the next step; imports without garbage collection."""

import contextlib
import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from types import ModuleType

import pytest

from governance.processes import importing, interrupts_held, time_limit

SWALLOWED = """
import ctypes, os, signal
from governance.processes import count_interrupts, pass_on_interrupt

count_interrupts()
callback = ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.SIGINT))
callback()  # an exception in a callback from C is dropped
print("went on", flush=True)
try:
    pass_on_interrupt()
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_that_was_dropped_is_raised_again():
    raising = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + SWALLOWED
    done = subprocess.run([sys.executable, "-c", raising], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["went on", "interrupted"]


def test_a_process_that_ignores_interrupts_keeps_to_it():
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + SWALLOWED
    done = subprocess.run([sys.executable, "-c", ignoring], capture_output=True, text=True, check=True)
    assert done.stdout == "went on\n"


CLEANS_UP = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from governance.processes import count_interrupts

count_interrupts()
try:
    print("ready", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("cleans up", flush=True)
    time.sleep(600)
"""


def test_a_second_interrupt_ends_the_process_at_once():
    process = subprocess.Popen([sys.executable, "-c", CLEANS_UP], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleans up\n"
    time.sleep(1.1)
    process.send_signal(signal.SIGINT)
    assert (process.stdout.read(), process.wait(300)) == ("", -signal.SIGINT)


@pytest.fixture
def heeds_interrupts():
    """A process that a script started in the background ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.usefixtures("heeds_interrupts")
def test_an_interrupt_that_is_held_back_comes_at_the_end(thread):
    went_on = []
    with pytest.raises(KeyboardInterrupt), interrupts_held():  # noqa: PT012
        if thread:  # one that does not block it, as a library's may not
            sender = threading.Thread(target=_interrupt_myself)
            sender.start()
            sender.join()
        else:
            signal.raise_signal(signal.SIGINT)
        went_on.append(True)
    assert went_on
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _interrupt_myself() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.raise_signal(signal.SIGINT)


def test_code_that_swallows_the_end_of_its_time_is_late_all_the_same():
    with (
        pytest.raises(TimeoutError, match=r"no answer after 0\.1 seconds"),
        time_limit(0.1),
        contextlib.suppress(Exception),
    ):
        time.sleep(30)
    with time_limit(30):
        pass


def test_nothing_is_collected_among_imports_or_examined_later():
    try:
        with importing():
            assert not gc.isenabled()
            with importing():
                pass
            sys.modules["assay_imported_by_this_test"] = ModuleType("assay_imported_by_this_test")
            made = [object() for _ in range(3)], {}
            assert not gc.isenabled()
        assert gc.isenabled()
        assert not any(kept is made for kept in gc.get_objects())  # frozen ones are not listed
    finally:
        sys.modules.pop("assay_imported_by_this_test", None)


def test_what_died_before_nothing_was_imported_is_freed():
    class Node:
        pass

    dead = Node()
    dead.itself = dead
    gone = weakref.ref(dead)
    del dead
    with importing():
        pass
    gc.collect()
    assert gone() is None
