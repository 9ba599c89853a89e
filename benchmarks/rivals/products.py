"""Current speed of matrix products on this machine: per turn the best of many, in operations per second.

python products.py DTYPE SECONDS THREADS
"""

import sys
import time

import torch
import turns

SIZES = (512, 1024, 2048)  # of `pretrain/metrics/peak_flops.py`: a processor is best at some, not at all


def best(dtype, seconds):
    """Operations per second of the fastest product of two square matrices; each of `SIZES` has its share of seconds."""
    found = 0.0
    for size in SIZES:
        left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        begin = time.perf_counter()
        while (started := time.perf_counter()) - begin < seconds / len(SIZES):
            left @ right
            found = max(found, 2 * size**3 / (time.perf_counter() - started))
    return found


def main():
    """Measure in turn."""
    dtype, seconds = getattr(torch, sys.argv[1]), float(sys.argv[2])
    torch.set_num_threads(int(sys.argv[3]))
    best(dtype, seconds)
    turns.take(lambda number: best(dtype, seconds))


if __name__ == "__main__":
    main()
