"""Run lease: a newer attempt fences out older ones.

    <root>/train/<key>/run.lock              held by the operating system while rank 0 is alive; names the holder
                       holders/000007.json   the seventh attempt: host, process, Slurm job, restarts; its modification
                                             time is the last heartbeat

The lock ends with its process, which suffices on one machine. On a cluster two cases are beyond it: a node that was cut
off trains on while its job is restarted elsewhere, and the lock of a dead node may never be released. So each attempt
also takes the next number, which only one process gets (`write_new`), and the highest number holds the lease. Laws:

1. A run is refused (`Occupied`) while the holder is alive: on its own host by the lock, elsewhere by heartbeats, each
   `BEAT_SECONDS`; a holder that is silent for `SILENT_SECONDS` is dead.
2. A later start of the same Slurm job, or a later try in its allocation, is not refused: it takes the next number, and
   waits `TRUST_SECONDS` and a beat. An earlier start of a job never follows a later one.
3. No process of an attempt writes on a check that is older than `TRUST_SECONDS`. So after the wait of law 2 nothing of
   an older attempt writes: a record is refused; a checkpoint checks before each of its parts, and again before it is
   committed. Each of its ranks also checks each beat, on many nodes each `look_seconds`, and ends with status 73.

No clocks are compared: ages are differences of times that the file system gave, or of one process's own clock. (Where a
file system lets its clients give them, as Lustre does, a dead holder whose clock was ahead is waited for no longer than
`SILENT_SECONDS`, and a living one whose clock is that much behind counts as dead, and law 3 ends it.) A process that is
suspended between its last check and its write is not kept out; what it writes then are the bytes of the same step of
the same run. Price: a small file written each beat, at most `LOOKS_PER_SECOND` directory listings a second of all nodes
together, and one of each node in a save: a node's first rank looks for all, and the ranks of a node share their checks
in a file (`LeaseSighting`). It is in /dev/shm, belongs to this account, and holds 16 bytes: the number of the attempt,
and the time of the check by the node's monotonic clock, which all its processes share. Without /dev/shm, or once the
first rank is gone, each rank checks for itself. A kill leaves the file behind; the next start on the node removes those
of this account that were not refreshed for a day.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from governance.errors import Occupied, PipelineError
from governance.files import (
    held,
    is_held,
    json_text,
    remove_file,
    sha256_bytes,
    touch,
    write_bytes,
    write_new,
    write_text,
)
from governance.log import get_logger
from governance.stage import now

LOCK_FILE = "run.lock"
HOLDERS = "holders"
BEAT_SECONDS = 4.0
TRUST_SECONDS = 6.0
SILENT_SECONDS = 60.0
LOOKS_PER_SECOND = 8.0
"""Most listings of the holders a second while a run trains, over all its nodes but the first."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class LeaseHolder:
    """An attempt, as other attempts read it."""

    host: str
    pid: int
    since: str
    """UTC, ISO 8601."""
    job: str = ""
    """Slurm job; "" outside Slurm."""
    restart: int = 0
    """Restarts of that job by Slurm."""
    number: int = 0
    """Number of the attempt; 0: it took none."""
    ended: bool = False
    retry: int = 0
    """Tries before this one in the same allocation."""

    def precedes(self, other: LeaseHolder) -> bool:
        """Return whether this is an earlier start of the other's Slurm job."""
        return bool(self.job) and self.job == other.job and (self.restart, self.retry) < (other.restart, other.retry)


def look_seconds(nodes: int) -> float:
    """Seconds between a node's looks at the holders."""
    return max(BEAT_SECONDS, nodes / LOOKS_PER_SECOND)


class RunLease:
    """Lease of an attempt, renewed while the context lasts.

    `number` is 0 on ranks other than the first until they `follow` it.
    """

    def __init__(self, folder: Path, ours: LeaseHolder, *, leads: bool = True, nodes: int = 1) -> None:
        self._folder, self._ours, self._first = folder / HOLDERS, ours, ours.number > 0
        self._leads, self._sighting = leads, LeaseSighting(folder)
        self._every = BEAT_SECONDS if self._first else look_seconds(nodes)
        self._looked = time.monotonic()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def number(self) -> int:
        """Number of this attempt."""
        return self._ours.number

    def follow(self, number: int) -> None:
        """Check the lease of attempt `number` each beat from now on.

        Rank 0 has done so since it took the number.
        """
        if self._thread is None:
            self._ours = replace(self._ours, number=number)
            self._thread = threading.Thread(target=self._live, daemon=True, name="lease")
            self._thread.start()

    def check(self, *, look: bool = False) -> None:
        """Raise if a newer attempt has begun.

        `look` reads the folder now, instead of trusting a check of moments ago, of this rank or of another of its node.

        Raises:
            Occupied: a newer attempt has begun.
        """
        began = time.monotonic()
        if not look and (began - self._looked < TRUST_SECONDS or self._seen(began, TRUST_SECONDS)):
            return
        newest = newest_holder(self._folder)
        if newest is not None and newest.number > self._ours.number:
            raise Occupied(
                f"{self._folder.parent}: a newer attempt trains here: {_who(newest)}. This one (attempt "
                f"{self._ours.number}) writes nothing more; let the newer one continue."
            )
        self._looked = began
        self._sighting.write(self.number, began)

    def _seen(self, began: float, seconds: float) -> bool:
        """Trust a check that a rank of this node made within `seconds`."""
        seen = self._sighting.read(self.number)
        if seen is None or not 0 <= began - seen < seconds:
            return False
        self._looked = max(self._looked, seen)
        return True

    def look(self) -> None:
        """`check` by reading the folder now."""
        self.check(look=True)

    def __enter__(self) -> RunLease:
        if self._leads:
            self._sighting.sweep()
        if self._first:
            self.follow(self._ours.number)
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self._first:
            with contextlib.suppress(PipelineError, OSError):  # its silence has the same effect
                self._write(ended=True)
        if self._leads:
            self._sighting.remove()

    def _beat(self) -> None:
        """Check the lease, or trust the check of the node's first rank."""
        began = time.monotonic()
        if self._leads or (not self._seen(began, 1.25 * self._every) and began - self._looked >= self._every):
            self.look()

    def _live(self) -> None:
        while not self._over.wait(self._every if self._leads else BEAT_SECONDS / 4):
            try:
                self._beat()
            except Occupied as error:
                get_logger(__name__).error("%s: %s", type(error).__name__, error)
                os._exit(error.exit_code)  # the main thread may wait endlessly for a rank that was cut off
            except OSError:
                continue  # the file system does not answer; `check` looks again before anything is written
            if self._first:
                with contextlib.suppress(PipelineError, OSError):  # the training itself reports a full disk
                    self._write()

    def _write(self, *, ended: bool = False) -> None:
        """Write a heartbeat.

        The file is replaced, not touched, so that clients of a network file system fetch the folder's listing again.
        """
        path = _path(self._folder, self._ours.number)
        if not path.parent.exists():
            return  # the run's folder was removed
        try:
            write_text(path, json_text(asdict(replace(self._ours, ended=ended))))
        except PipelineError:
            touch(path)  # needs no room on a full disk


@contextlib.contextmanager
def hold_folder(
    folder: Path, attempt: tuple[str, int, int], *, first: bool, leads: bool = True, nodes: int = 1
) -> Iterator[RunLease]:
    """Hold the lease of the run's folder while the context lasts.

    Rank 0 takes it for all ranks. The other ranks of a refused attempt wait for it and their launcher ends
    them with it.

    Args:
        folder: of the run.
        attempt: the Slurm job ("" without one), its number of restarts, and of tries before in the same allocation.
        first: whether this is rank 0.
        leads: whether this is the first rank of its node, which looks for the others.
        nodes: of the run.

    Raises:
        Occupied: another attempt that is alive, or a later start of the same job, holds it.
    """
    job, restart, retry = attempt
    ours = LeaseHolder(socket.gethostname(), os.getpid(), now(), job, restart, retry=retry)
    if not first:
        with RunLease(folder, ours, leads=leads, nodes=nodes) as lease:
            yield lease
        return
    with contextlib.ExitStack() as stack:
        claimed = _claim(stack, folder, ours)
        yield stack.enter_context(RunLease(folder, claimed))


def _claim(stack: contextlib.ExitStack, folder: Path, ours: LeaseHolder) -> LeaseHolder:
    """Take the lease if free, released, dead or this job's own."""
    note, holders = _lock(stack, folder, ours), folder / HOLDERS
    while True:
        newest = newest_holder(holders)
        took_over = newest is not None and newest.precedes(ours)
        if newest is not None and ours.precedes(newest):
            raise Occupied(f"{folder}: a later start of this job trained here: {_who(newest)}. Let that one continue.")
        if not took_over:
            _await_end(folder, newest, note, ours)
        number = 1 + (newest.number if newest else 0)
        claimed = replace(ours, number=number)
        if write_new(_path(holders, number), json_text(asdict(claimed)).encode()):
            break
    if took_over and not newest.ended:
        get_logger(__name__).warning(
            "%s: taken over from an earlier start of this job, %s, whose end was not seen", folder, _who(newest)
        )
        time.sleep(TRUST_SECONDS + BEAT_SECONDS)
    if note is not None:
        _lock(stack, folder, ours)  # it may be free by now; a dead node's lock may remain, and no longer counts
    for path in sorted(holders.glob("*.json")):
        if path.stem.isdecimal() and int(path.stem) < number:
            remove_file(path)
    return claimed


def _lock(stack: contextlib.ExitStack, folder: Path, ours: LeaseHolder) -> str | None:
    """Take the lock until the stack ends.

    Return its holder's note if it is taken.
    """
    return stack.enter_context(held(folder / LOCK_FILE, json.dumps(asdict(ours))))


def _await_end(folder: Path, newest: LeaseHolder | None, note: str | None, ours: LeaseHolder) -> None:
    """Wait until the holder is known to be gone.

    Raises:
        Occupied: it is alive.
    """
    if newest is None or newest.ended or newest.host == ours.host:
        if note is not None:
            raise Occupied(_in_words(folder, note, ours.host))
        return
    path = _path(folder / HOLDERS, newest.number)
    beat, began, logged = _changed(path), time.monotonic(), False
    while _age(path) < SILENT_SECONDS and time.monotonic() - began < SILENT_SECONDS:
        if not logged:
            get_logger(__name__).info("%s: waiting for a heartbeat of %s", folder, _who(newest))
            logged = True
        time.sleep(_POLL_SECONDS)
        if _changed(path) != beat:
            raise Occupied(_in_words(folder, json.dumps(asdict(newest)), ours.host))
    get_logger(__name__).warning("%s: %s had no heartbeat for %d s: it is dead", folder, _who(newest), SILENT_SECONDS)


def newest_holder(holders: Path) -> LeaseHolder | None:
    """The attempt of the highest number, ended or not; None without one."""
    try:
        names = os.listdir(holders)
    except FileNotFoundError:
        return None
    numbers = [int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdecimal()]
    if not numbers:
        return None
    try:
        values = json.loads(_path(holders, max(numbers)).read_bytes())
        return LeaseHolder(**values)
    except (FileNotFoundError, ValueError, TypeError):  # written by another version, or removed at this moment
        return LeaseHolder("unknown", 0, "unknown", number=max(numbers))


def live_holder(folder: Path) -> str:
    """The attempt that trains in a folder, or ""."""
    newest = newest_holder(folder / HOLDERS)
    if newest is None or newest.ended:
        return ""
    path = _path(folder / HOLDERS, newest.number)
    here = newest.host == socket.gethostname()
    alive = is_held(folder / LOCK_FILE) if here else _age(path) < SILENT_SECONDS
    return _who(newest) if alive else ""


def _path(holders: Path, number: int) -> Path:
    return holders / f"{number:06d}.json"


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _age(path: Path) -> float:
    """Seconds since a change, by the file system's clock."""
    probe = path.with_name(f".age~{socket.gethostname()}~{os.getpid()}")
    touch(probe)
    try:
        return (_changed(probe) - _changed(path)) / 1e9
    finally:
        remove_file(probe)


def _who(holder: LeaseHolder) -> str:
    job = f", Slurm job {holder.job}, restart {holder.restart}" if holder.job else ""
    job += f", retry {holder.retry}" * bool(holder.retry)
    return f"attempt {holder.number}, process {holder.pid} on {holder.host} since {holder.since}{job}"


def _in_words(folder: Path, note: str, here: str) -> str:
    try:
        other = json.loads(note)
        where = "this host" if other["host"] == here else "another host, which shares this file system"
        job = f" (Slurm job {other['job']})" if other.get("job") else ""
        who = f"process {other['pid']} on {other['host']} ({where}), since {other['since']}{job}"
    except (ValueError, KeyError, TypeError):  # it has the lock, and has not written its note yet
        who = "a process that has just begun"
    return f"{folder}: another run trains here: {who}. Wait for it, or end it with SIGTERM; then run the same again."


SHARED_MEMORY = Path("/dev/shm")
_RECORD = struct.Struct("<qd")
_STALE_SECONDS = 86_400.0  # a living run refreshes its file each few seconds


class LeaseSighting:
    """Sighting file of one run on this node."""

    def __init__(self, folder: Path) -> None:
        self._prefix = f"assay-{os.getuid()}-"
        self._path = SHARED_MEMORY / f"{self._prefix}{sha256_bytes(os.fsencode(folder.absolute()))[:32]}"

    def sweep(self) -> None:
        """Remove files of killed runs: this account's, not refreshed for a day."""
        for path in SHARED_MEMORY.glob(f"{self._prefix}*"):
            with contextlib.suppress(OSError):
                found = path.lstat()
                ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
                if ours and time.time() - found.st_mtime > _STALE_SECONDS:
                    remove_file(path)

    def write(self, number: int, moment: float) -> None:
        """Record that attempt `number` was the newest at `moment`, if possible."""
        if SHARED_MEMORY.is_dir():
            with contextlib.suppress(OSError, PipelineError):
                write_bytes(self._path, _RECORD.pack(number, moment))

    def read(self, number: int) -> float | None:
        """Time at which attempt `number` was last the newest, if known."""
        with contextlib.suppress(OSError, struct.error):
            found = self._path.lstat()
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
            if ours:  # in a sticky folder no other account can write or replace it
                of, moment = _RECORD.unpack(self._path.read_bytes())
                return float(moment) if of == number else None
        return None

    def remove(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            remove_file(self._path)
