"""One target under atheris: inputs that reach new code are changed further.

    python -m tests.fuzz.guided TARGET --cases N --seconds S --seed S --scratch FOLDER

libFuzzer chooses what is changed next, and changes it itself or by `changed`. A process of its own, because it ends
with libFuzzer; its counts are in FOLDER/counts.json. Needs `pip install atheris`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.fuzz.kept import keep, place_of
from tests.fuzz.targets import Target, changed, explained, targets

_MAX_BYTES = 1 << 16
_PACKAGES = ["assay", "data_pipeline", "governance", "pretrain"]


def fuzz(name: str, target: Target, arguments: argparse.Namespace) -> None:
    """Read inputs until enough are counted; ends the process."""
    import atheris

    done = read = 0
    found: dict[str, str] = {}
    end = time.monotonic() + arguments.seconds if arguments.seconds else float("inf")
    inputs, corpus = arguments.scratch / "inputs", arguments.scratch / "corpus"
    for folder in (inputs, corpus):
        folder.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        nonlocal done, read
        if done >= arguments.cases or time.monotonic() > end:
            counts = {"done": done, "read": read, "found": found}
            (arguments.scratch / "counts.json").write_text(json.dumps(counts))
            sys.stdout.flush()
            os._exit(0)
        if target.values and not _is_json(data):  # libFuzzer begins with an empty input
            return
        done += 1
        try:
            read += explained(target, data, inputs)
        except Exception as error:  # every kind is a find
            if (place := place_of(error)) not in found:
                found[place] = keep(name, data)
                print(f"{name}: {place}: {error}: {found[place]}", flush=True)

    words = [name, str(corpus), f"-seed={arguments.seed + 1}", f"-max_len={_MAX_BYTES}", "-timeout=60", "-verbosity=0"]
    # `Fuzz` puts another function in the place of `Mutate`
    by_library = lambda data, most: atheris.Mutate(data, most)  # noqa: E731
    atheris.Setup(words, one, custom_mutator=mutator(target, by_library))
    atheris.Fuzz()


def mutator(target: Target, by_library: Callable[[bytes, int], bytes]) -> Callable[[bytes, int, int], bytes]:
    """Function that changes an input: half by the library, unless the input is JSON, and else by `changed`."""

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if not target.values and chance.random() < 0.5:
            return by_library(data, most)
        usable = data if not target.values or _is_json(data) else chance.choice(target.seeds)
        return changed(replace(target, seeds=[usable]), chance)[:most]

    return mutate


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def main() -> None:
    """Fuzz one target."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--cases", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    import atheris

    with atheris.instrument_imports(include=_PACKAGES):
        target = targets()[arguments.name]
        for seed in target.seeds:  # readers import their parts when they are called
            explained(target, seed, arguments.scratch)
    fuzz(arguments.name, target, arguments)


if __name__ == "__main__":
    main()
