"""Values of command-line options, and common options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SCALES = {"M": 2, "G": 3, "T": 4}


def flag(command: argparse._ActionsContainer, name: str, text: str) -> None:
    """Add an option without a value."""
    command.add_argument(name, action="store_true", help=text)


def option(
    command: argparse._ActionsContainer,
    name: str,
    convert: Callable[[str], object],
    metavar: str,
    text: str,
    **more: Any,
) -> None:
    """Add an option or a position with a value."""
    command.add_argument(name, type=convert, metavar=metavar, help=text, **more)


def path(command: argparse._ActionsContainer, name: str, metavar: str, text: str, **more: Any) -> None:
    """Add an option or a position that names a file or folder."""
    option(command, name, Path, metavar, text, **more)


def nproc(command: argparse.ArgumentParser) -> None:
    """Add the option that names the number of training processes."""
    option(command, "--nproc", positive, "N", "training processes on this machine (default: 1)", default=1)


def hours(text: str) -> float:
    """A number of hours, up to a year."""
    number = float(text)
    if not 0 < number <= 24 * 366:
        raise argparse.ArgumentTypeError(f"{text} is not a number of hours above 0 and up to a year")
    return number


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def natural(text: str) -> int:
    """A whole number from 0 up."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def size(text: str) -> int:
    """Bytes of a size with its unit.

    "80GiB" is in powers of 1024, "80GB" in powers of 1000.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([MGT])(i?)B", text, re.ASCII)
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size above 0 with its unit, such as 80GiB or 141GB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _SCALES[found[2]])


def root_folder(text: str) -> Path:
    """A folder of this machine or of its mounts."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is a URL; a root is a folder. Name a folder, then copy it with: assay mirror push FOLDER {text}"
        )
    return Path(text)


def prefix(text: str) -> Path:
    """A path with the first part of a file's name."""
    if not Path(text).name or text.endswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} does not name a file: give a path and the first part of a name")
    return Path(text)


def task(text: str) -> tuple[int, int]:
    """Task I of N, typed "I/N", as two numbers."""
    number, _, count = text.partition("/")
    if not (text.isascii() and number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return int(number), int(count)


def engine(command: argparse.ArgumentParser) -> None:
    """Add `--engine`, which changes no byte."""
    command.add_argument(
        "--engine",
        choices=("duckdb", "daft", "ray"),
        default="duckdb",
        help="library for the joins over the whole corpus; daft also runs on Ray; ray: the Ray cluster of RAY_ADDRESS "
        "makes the shards of every step too (default: %(default)s)",
    )
