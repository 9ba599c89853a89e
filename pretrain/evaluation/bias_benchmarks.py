"""Published bias benchmarks, from the user's own files.

Files are JSON Lines (plain or .gz) with the fields below, or as they were published: CrowS-Pairs as CSV, StereoSet as
one JSON value, WinoBias as the two text files of a type. Each item becomes a context and options, each with a role;
`model_bias.py` computes figures from their likelihoods.

    crows_pairs  Nangia et al. 2020 (arXiv:2010.00133)   `sent_more`, `sent_less`, `bias_type`
    stereoset    Nadeem et al. 2021 (arXiv:2004.09456)   `context`, `stereotype`, `anti_stereotype`, `unrelated`,
                                                         `bias_type`; or the published JSON
    winobias     Zhao et al. 2018 (arXiv:1804.06876)     `id` of "pro-..." and "anti-...", `text`, `type`: pairs that
                                                         differ in the pronoun
    bbq          Parrish et al. 2022 (arXiv:2110.08193)  `context`, `question`, `choices` or `ans0` to `ans2`, `label`,
                                                         `answer_info`, `stereotyped_groups`, condition and polarity
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.errors import ConfigError, MissingInput
from pretrain.evaluation.loglikelihood import LEAD

NAMES = ("crows_pairs", "stereoset", "winobias", "bbq")


@dataclass(frozen=True)
class BenchmarkItem:
    """One test item: a context and its possible continuations."""

    category: str
    """Bias category, as the set names it."""
    context: str
    options: tuple[str, ...]
    """Possible continuations of the context."""
    roles: tuple[str, ...]
    """Role of each option: "more" or "less" stereotyped, "unrelated", "unknown", "biased", "counter"."""
    condition: str = ""
    """BBQ: "ambig" or "disambig"."""
    label: int = -1
    """BBQ: the right option."""


def read_set(name: str, paths: Sequence[Path]) -> list[BenchmarkItem]:
    """Items of one published set.

    Raises:
        MissingInput: a file does not exist.
        ConfigError: a file has another format; the file and the field are named.
    """
    read: list[str] = []

    def objects() -> Iterator[dict[str, Any]]:
        for path in paths:
            read.append(str(path))
            yield from _objects(path)

    try:
        items = list(_READERS[name](objects()))
    except FileNotFoundError as error:
        raise MissingInput(f"model_audit.{name}: no file {error.filename}") from error
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        raise ConfigError(
            f"model_audit.{name}: {read[-1]} does not have this set's format ({type(error).__name__}: {error})"
        ) from error
    if not items:
        raise ConfigError(f"model_audit.{name}: {', '.join(read)}: no item")
    return items


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """Records of one file."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        kind = path.name.removesuffix(".gz")
        if kind.endswith(".csv"):
            yield from csv.DictReader(file)
            return
        if found := _WINOBIAS_FILE.match(kind):
            for number, line in enumerate(file):
                text = re.sub(r"[][]", "", line.partition(" ")[2]).strip()
                yield {"id": f"{found[1]}-{found[2]}-{number}", "text": text, "type": found[2]}
            return
        first = file.readline()
        try:
            yield json.loads(first)
        except ValueError:  # one value over many lines
            yield json.loads(first + file.read())
            return
        yield from (json.loads(line) for line in file if line.strip())


_WINOBIAS_FILE = re.compile(r"(pro|anti)_stereotyped_type([12])\.txt")


def _crows_pairs(rows: Iterator[Mapping[str, Any]]) -> Iterator[BenchmarkItem]:
    for row in rows:
        yield BenchmarkItem(row["bias_type"], LEAD, (row["sent_more"], row["sent_less"]), ("more", "less"))


_STEREOSET = {"stereotype": "more", "anti-stereotype": "less", "unrelated": "unrelated"}


def _stereoset(rows: Iterator[Mapping[str, Any]]) -> Iterator[BenchmarkItem]:
    for row in rows:
        if "data" not in row:
            between = row["type"] == "intersentence"
            texts = {role: row[role.replace("-", "_")] for role in _STEREOSET}
            yield _triple(row["bias_type"], row["context"] if between else "", texts)
            continue
        for kind in ("intersentence", "intrasentence"):
            for item in row["data"][kind]:
                texts = {s["gold_label"]: s["sentence"] for s in item["sentences"]}
                yield _triple(item["bias_type"], item["context"] if kind == "intersentence" else "", texts)


def _triple(category: str, context: str, texts: Mapping[str, str]) -> BenchmarkItem:
    before = LEAD + context
    options = tuple(f" {texts[role]}" if context else texts[role] for role in _STEREOSET)
    return BenchmarkItem(category, before, options, tuple(_STEREOSET.values()))


def _winobias(rows: Iterator[Mapping[str, Any]]) -> Iterator[BenchmarkItem]:
    waiting: dict[str, tuple[str, str]] = {}
    for row in rows:
        leaning, _, rest = row["id"].rpartition("/")[2].partition("-")
        if leaning not in ("pro", "anti"):
            raise ValueError(f"id {row['id']!r} starts neither with pro- nor with anti-")
        if rest not in waiting:
            waiting[rest] = (leaning, row["text"])
            continue
        texts = dict([waiting.pop(rest), (leaning, row["text"])])
        yield BenchmarkItem(f"type{row['type']}", LEAD, (texts["pro"], texts["anti"]), ("more", "less"))
    if waiting:
        raise ValueError(f"{len(waiting)} sentences have no partner, such as {min(waiting)!r}")


def _bbq(rows: Iterator[Mapping[str, Any]]) -> Iterator[BenchmarkItem]:
    for row in rows:
        choices = row.get("choices") or [row[f"ans{number}"] for number in range(3)]
        more = row.get("additional_metadata", row)
        groups = {str(group).casefold() for group in more["stereotyped_groups"]}
        polarity = row.get("polarity") or row["question_polarity"]
        roles = []
        for number in range(len(choices)):
            info = [str(part).casefold() for part in row["answer_info"][f"ans{number}"]]
            named = bool(groups.intersection(info))
            roles.append(
                "unknown" if info[-1] == "unknown" else "biased" if named == (polarity == "neg") else "counter"
            )
        category = row.get("category") or row["id"].partition("/")[0].removeprefix("bbq-")
        question = f"{LEAD}{row['context']} {row['question']}"
        options = tuple(f" {choice}" for choice in choices)
        yield BenchmarkItem(category, question, options, tuple(roles), row["context_condition"], int(row["label"]))


_READERS: dict[str, Callable[[Iterator[Mapping[str, Any]]], Iterator[BenchmarkItem]]] = {
    "crows_pairs": _crows_pairs,
    "stereoset": _stereoset,
    "winobias": _winobias,
    "bbq": _bbq,
}
