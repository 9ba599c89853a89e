"""Code stage: keep the source files that owners, licences and rules allow.

    [data.code]
    opt_out = ["lists/opt-out.txt"]
    max_line_characters = 1000

Only documents of sources of type `code` are judged; all others pass. Order of the reasons; a file is removed with the
first that holds:

    path_opted_out   an entry of a list names its repository or path (`opt_out_lists.py`)
    licence_refused  `allow_licences` and `deny_licences` of its source do not let it pass
    file_too_large  generated  minified  long_lines  few_alphanumerics  encoded_data  data_file
                     as `file_rules.py` says

Roles `documents`, `removed`. `stats` adds `licences` and `programming_languages`: source files that came in, by
expression and by language; and `opt_out_entries`: removed files by entry. A warning names the
entries that match no file.

Price: one pass over the texts; a row group (8 MiB of text) is in memory.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from data_pipeline.code.file_rules import FileRules, reason_of
from data_pipeline.code.opt_out_lists import opted_out, read_opt_outs, unmatched
from data_pipeline.documents import DOCUMENT_SCHEMA, REMOVED_SCHEMA, funnel, gathered, judged, map_documents, pass_on
from data_pipeline.readers.local import find_files
from data_pipeline.readers.sources import Source, licence_lists
from governance.config import Section
from governance.file_digests import file_inputs, unchanged
from governance.gate.licence_choices import permits
from governance.log import get_logger
from governance.manifest import Manifest
from governance.parallel import ShardMade
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 6
_NAMED = 10  # entries that the warning on those without a file names


class CodeConfig(FileRules):
    """Conditions that a source file must meet."""

    opt_out: tuple[str, ...] = Field(default=(), exclude=True)
    """Shell patterns of lists of repositories and paths that are removed, relative to the run's file. The key holds the
    lists' digests, not their places."""


class CodeIdentity(Section):
    """Recipe of the stage: everything that decides its bytes."""

    rules: CodeConfig
    licences: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
    """Licences that each source of code allows and denies."""
    opt_out: tuple[str, ...]
    """SHA-256 of each list."""


def find_opt_outs(config: CodeConfig, folder: Path) -> list[Path]:
    """The files of the opt-out lists.

    Raises:
        MissingInput: one is missing.
    """
    if not config.opt_out:
        return []
    return [file.path for file in find_files(config.opt_out, folder, "data.code: opt_out")]


def check_opt_outs(config: CodeConfig, folder: Path) -> None:
    """Read the opt-out lists before any document is.

    Raises:
        MissingInput: one is missing.
        ConfigError: a line of one is not an entry.
    """
    read_opt_outs(find_opt_outs(config, folder))


def _judge(identity: CodeIdentity, entries: frozenset[str], document: Mapping[str, Any]) -> tuple[str, str]:
    """The reason against a source file, and the evidence."""
    if document["source"] not in identity.licences:
        return "", ""
    facts = json.loads(document["columns"])
    if entry := opted_out(facts["repository"], facts["path"], entries):
        return "path_opted_out", f"entry={entry}"
    if not _permitted(document["licence"], *identity.licences[document["source"]]):
        origin = facts.get("licence_from", "")
        return "licence_refused", f"licence={document['licence']}{f' from={origin}' * bool(origin)}"
    return reason_of(identity.rules, facts["path"], facts["programming_language"], document["text"])


@functools.lru_cache(maxsize=4096)
def _permitted(licence: str, allowed: tuple[str, ...], denied: tuple[str, ...]) -> bool:
    return permits(licence, allowed, denied)


def _counts(
    identity: CodeIdentity, rows: Sequence[Mapping[str, Any]], verdicts: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    files = [row for row in rows if row["source"] in identity.licences]
    languages = (json.loads(row["columns"])["programming_language"] for row in files)
    entries = (evidence.removeprefix("entry=") for reason, evidence in verdicts if reason == "path_opted_out")
    return {
        "licences": dict(sorted(Counter(row["licence"] for row in files).items())),
        "programming_languages": dict(sorted(Counter(languages).items())),
        "opt_out_entries": dict(sorted(Counter(entries).items())),
    }


def _select_shard(
    section: CodeIdentity, work: tuple[Path, tuple[Path, ...]], path_of: Callable[[str], Path]
) -> ShardMade:
    path, lists = work
    with unchanged(zip(lists, section.opt_out, strict=True)):
        entries = read_opt_outs(lists)

    def judge(group: pa.Table) -> tuple[Sequence[pa.Table], dict[str, Any]]:
        rows = group.to_pylist()
        verdicts = [_judge(section, entries, row) for row in rows]
        tables, counts = judged(group, [reason for reason, _ in verdicts], [evidence for _, evidence in verdicts])
        return tables, {**counts, **_counts(section, rows, verdicts)}

    schemas = {"documents": DOCUMENT_SCHEMA, "removed": REMOVED_SCHEMA}
    return pass_on(path, path_of, schemas, judge, _zero_counts(section))


def _zero_counts(identity: CodeIdentity) -> dict[str, Any]:
    return {**funnel([], [], [], []), **_counts(identity, [], [])}


def select_code(
    documents: Manifest, config: CodeConfig, sources: Sequence[Source], runtime: Runtime, folder: Path
) -> Manifest:
    """Remove source files that an owner, a licence or a rule excludes.

    Raises:
        MissingInput: an opt-out list is missing.
        ConfigError: a line of one is not an entry.
    """
    lists = find_opt_outs(config, folder)
    inputs = file_inputs(((f"opt_out/{path.name}", path) for path in lists), runtime)
    licences = {
        source.name: (named.allow_licences, named.deny_licences)
        for source in sources
        if (named := licence_lists(source)) is not None
    }
    identity = CodeIdentity(rules=config, licences=licences, opt_out=tuple(item.digest for item in inputs))
    recipe = Recipe("code", VERSION, identity)

    def make(target: Path) -> Made:
        with unchanged(zip(lists, identity.opt_out, strict=True)):
            entries = read_opt_outs(lists)
        done = map_documents(recipe, _select_shard, documents, [tuple(lists)], (), target, runtime)
        made = gathered(done, _zero_counts(identity))
        if without := unmatched(entries, made.stats["opt_out_entries"]):
            named = ", ".join(without[:_NAMED]) + ", ..." * (len(without) > _NAMED)
            words = "data.code: opt_out: %d of %d entries match no file that clean kept: %s"
            get_logger(__name__).warning(words, len(without), len(entries), named)
        return made

    return run_stage(recipe, [documents.as_input(), *inputs], runtime, make)
