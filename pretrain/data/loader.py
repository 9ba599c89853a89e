"""Data loader: reads ahead, and digests every token read.

One thread reads `DEPTH` steps ahead. The rows of a step are a function of its number, so a restart needs no saved
state. The loop sees a reading error when it requests that step. Closing waits only for the batch that is being read.

*The digest of the token stream.* Each row yields the SHA-256 of its place in the run (uint64, little-endian; rows are
counted from 0 over the whole run) and its tokens (uint32 each), as four words of 64 bits. The words of all rows of a
step are summed over ranks with wrap-around, in any order; the sums are chained over steps with SHA-256. Two runs with
the same `stream` have read the same tokens at the same places, whatever their ranks, micro batches, stages and
restarts; a different token or place gives another digest, but for a chance of 2^-256. The digest proves what was read,
not what was learned from it (it includes skipped batches), and does not stop a forger, who can solve for sums: digests
of files and the journal do.

Price: 1.0 ms of CPU per step of 16 rows of 256 tokens, SHA-256 included (2.1 ms with a mixture of three sources), in a
thread of its own; 32 bytes in a collective that is needed anyway.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from governance.files import sha256_bytes
from governance.splitmix64 import INCREMENT, finalise, finalise_word
from pretrain.config.training import TrainConfig
from pretrain.data.dataset import Rows, micro_batches
from pretrain.data.sampler import RowSampler, sampler_of

if TYPE_CHECKING:
    from pretrain.model.decoder import Batch

DEPTH = 2
DIGEST_WORDS = 4
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class StepRows:
    """Rows of one optimizer step on this rank."""

    step: int
    rows: list[int]
    """Row numbers of the whole step, over all ranks, in order."""
    batches: list[Batch]
    """This rank's micro batches."""
    targets: int
    """Tokens that they predict."""
    digest: list[int]
    """This rank's part of the step's four digest_words, int64; see `chain`."""
    mixture: dict[str, float] | None
    """Weights of the sources that begin with this step, if any do."""
    seconds: float
    """CPU time of the reading thread."""


@contextlib.contextmanager
def open_loader(
    rows: Rows, train: TrainConfig, share: tuple[int, int, int], device: torch.device, done: int
) -> Iterator[Iterator[StepRows]]:
    """This rank's rows of each step after `done`, in order.

    They are read ahead while the context lasts.
    """
    order = sampler_of(rows, train)
    steps = range(done + 1, train.steps + 1)

    def read(step: int) -> StepRows:
        return read_step(rows, order, step, share, device)

    with read_ahead(read, steps) as loader:
        yield loader


def read_step(rows: Rows, order: RowSampler, step: int, share: tuple[int, int, int], device: torch.device) -> StepRows:
    """The rows of one step.

    `share` is (micro batch size, data rank, data ranks). For CUDA the memory is pinned.
    """
    began = time.thread_time()
    numbers, first = order.rows(step), order.sizes.before(step)
    places = list(micro_batches(list(range(first, first + len(numbers))), *share))
    read = [rows.batch(group) for group in micro_batches(numbers, *share)]
    seeds = [seeds_of(order.seed, of_group) for of_group in places]
    batches = [replace(rows.corrupted(*each), seeds=each[1]) for each in zip(read, seeds, strict=True)]
    digest = digest_words([batch.tokens.numpy() for batch in read], list(itertools.chain.from_iterable(places)))
    targets = sum(int(np.count_nonzero(batch.targets.numpy() >= 0)) for batch in batches)
    if device.type == "cuda":
        with torch.cuda.device(device):  # else each rank's thread would hold memory of card 0
            batches = [batch.pinned() for batch in batches]
    mixture = order.mixture.weights().get(step) if order.mixture is not None else None
    return StepRows(step, numbers, batches, targets, digest, mixture, time.thread_time() - began)


def seeds_of(seed: int, places: Sequence[int]) -> torch.Tensor:
    """Random numbers of rows, int64, from the seed and their places.

    Places are those in the run. So what is random in training does not depend on ranks, micro batches or restarts.
    """
    words = np.array(places, np.uint64) * INCREMENT + np.uint64(finalise_word(seed + 1))
    return torch.from_numpy(finalise(words).view(np.int64))


def digest_words(tokens: Sequence[np.ndarray[Any, Any]], places: Sequence[int]) -> list[int]:
    """Sum of the rows' digests, as `DIGEST_WORDS` int64.

    `tokens` are [B, L] each, `places` one per row.
    """
    rows = (row for batch in tokens for row in batch.astype("<u4"))
    texts = (place.to_bytes(8, "little") + row.tobytes() for place, row in zip(places, rows, strict=True))
    digests = bytes.fromhex("".join(map(sha256_bytes, texts)))
    read = np.frombuffer(digests, dtype="<i8").reshape(-1, DIGEST_WORDS)
    return [int(lane) for lane in read.sum(axis=0, dtype=np.int64)]  # wraps, as the collective does


def chain(stream: str, step: int, digest: Sequence[int]) -> str:
    """SHA-256 of the stream after a step.

    It follows from the one before (`stream`, "" before step 1) and the summed words of all ranks.
    """
    return sha256_bytes(f"{stream} {step} {' '.join(map(str, digest))}".encode())


@contextlib.contextmanager
def read_ahead(make: Callable[[int], _Made], steps: Iterable[int], depth: int = DEPTH) -> Iterator[Iterator[_Made]]:
    """Read `make(step)` ahead in one thread, at most `depth` steps.

    An error in `make` is raised by the `next` that requests its step.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="rows")
    coming = iter(steps)
    waiting = deque(thread.submit(make, step) for step in itertools.islice(coming, depth))

    def each() -> Iterator[_Made]:
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(thread.submit(make, step) for step in itertools.islice(coming, 1))
            yield made

    try:
        yield each()
    finally:
        thread.shutdown(cancel_futures=True)


def by_origin(nats: torch.Tensor, origins: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats and predicted tokens by origin, fp64 [count] each, on the device.

    There is no host sync.
    """
    index = origins.to(nats.device, non_blocking=True).flatten() + 1  # -1 (nothing is predicted) has a place of its own
    values = torch.stack([nats.detach().flatten().double(), torch.ones_like(index, dtype=torch.float64)], dim=1)
    sums = torch.zeros(count + 1, 2, dtype=torch.float64, device=nats.device).index_add_(0, index, values)[1:]
    return sums[:, 0], sums[:, 1]
