"""Great Expectations' Data Docs of an audit, on request.

Every table is judged again, and the engine writes its static site ("Data Docs") into a folder: what it found, and
the suites. The pages show the *engine's* results, which fail open where `governance.checks.expectations` does
not: a pass over an empty table there is not a pass here. The verdict is in the report, not in Data Docs.

A suite has one page of expectations and, for each shard or table, a page of results (a batch each). Gates on some rows
(`where`) are a suite of their own, named by these rows. GX's pages load
styles and scripts from outside hosts, and its index is drawn by them: here the pages carry a style of their own, load
nothing, run no script, and the index is written plainly. Price: the audit's suites again, and about 0.1 s per page.
The artifact "data_docs" holds them below the root, and the next report links it; two of them differ in their times.
"""

from __future__ import annotations

import datetime
import html
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from governance.checks.expectations import absent_columns, built_expectations, by_rows, quiet_context
from governance.checks.gx.own_expectations import own_seconds
from governance.checks.messages import rows_where, where_words
from governance.checks.suites import SuiteTable
from governance.config import Section
from governance.errors import ConfigError, PipelineError, storage_errors
from governance.files import remove_tree, write_text
from governance.gate.policy import Gate
from governance.log import get_logger
from governance.manifest import Manifest, describe
from governance.processes import time_limit
from governance.stage import Made, Recipe, Runtime, run_stage
from governance.workers import take_turns

VERSION = 3
_SITE = "assay"
_MAX_NAME = 200  # bytes of a suite's name: a file name may have 255
_OUTSIDE = re.compile(
    r"<script\b.*?</script>|<link\b[^>]*//[^>]*>|<img\b[^>]*src=[\"']https?://[^>]*>|<form\b.*?</form>"
    r"|<footer\b.*?</footer>",  # an advertisement
    re.DOTALL,
)
_URL = re.compile(r"url\([\"']?https?:[^)]*\)")
_HEAD = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'self' 'unsafe-inline';
img-src 'self' data: file:; font-src 'self' file:"><style>
body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:0 auto;padding:1rem;color:#1d2126;background:#fff}
table{border-collapse:collapse;width:100%;margin:.6rem 0}th,td{border:1px solid #dedbd3;padding:.3rem .6rem;
text-align:left;vertical-align:top;overflow-wrap:anywhere}
.badge{border:1px solid #bbb;border-radius:.3rem;padding:0 .3rem}
nav,footer,.modal,.tooltip,#ge-cta-footer,.cooltip .top{display:none!important}.collapse{display:block!important}
.fa-check-circle::before{content:'pass'}.fa-times::before{content:'fail'}.fa-exclamation-triangle::before{content:'error'}
.pass,.text-success{color:#1c6b3a}.fail,.text-danger{color:#a8231c}</style>"""


def data_docs(
    tables: Iterable[tuple[str, SuiteTable]], gates: Sequence[Gate], checked: Manifest, runtime: Runtime
) -> Manifest:
    """Write the Data Docs of an audit as an artifact.

    Of processes that do so at the same time, one writes and the others find what it wrote.

    Raises:
        PipelineError: the engine could not draw a table.
        StorageError: the disk is full or refuses.
    """

    def make(folder: Path) -> Made:
        remove_tree(folder)  # left by an interrupted run
        count = write_data_docs(tables, gates, folder)
        pages = sorted(path for path in folder.rglob("*") if path.is_file())
        return Made([describe(path, runtime.root) for path in pages], {"tables": count})

    recipe, inputs = Recipe("data_docs", VERSION, Section()), [checked.as_input()]
    return take_turns(runtime, lambda turn: run_stage(recipe, inputs, turn, make, alone=True))


def write_data_docs(tables: Iterable[tuple[str, SuiteTable]], gates: Sequence[Gate], folder: Path) -> int:
    """Write Data Docs into an empty folder; return the number of tables.

    A table with a problem, or without a gate that the engine can evaluate, is skipped with a warning.

    Raises:
        ConfigError: the folder is not empty.
        PipelineError: the engine could not draw a table.
        StorageError: the disk is full or refuses.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError
        (folder / "expectations").mkdir(parents=True)  # fails in the second of two processes that run at the same time
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"--data-docs {folder}: the folder is not empty. Name a new one.") from error
    context = quiet_context()
    from great_expectations.core.run_identifier import RunIdentifier

    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.absolute())}
    index = {"class_name": "DefaultSiteIndexBuilder"}
    context.add_data_docs_site(
        _SITE, {"class_name": "SiteBuilder", "store_backend": store, "site_index_builder": index}
    )
    asset = context.data_sources.add_pandas("tables").add_dataframe_asset("table")
    run = RunIdentifier(run_name="audit", run_time=datetime.datetime.now(datetime.UTC))
    outcomes: list[tuple[str, str, int, int]] = []
    with storage_errors(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for suite, table in tables:
            for name, part, mine in _parts(suite, table, [gate for gate in gates if gate.suite == suite]):
                outcome = _validate(context, asset, (name, part), mine, run)
                outcomes += [(name, part.subject, *outcome)] if outcome else []
        context.build_data_docs(site_names=[_SITE])
        pages = len(list(folder.glob("validations/**/*.html")))
        if pages != len(outcomes):  # the engine logs what it cannot draw, and goes on
            raise PipelineError(f"--data-docs {folder}: the engine wrote {pages} pages of {len(outcomes)} tables")
        for page in sorted(folder.rglob("*.html")):
            text = _URL.sub("none", _OUTSIDE.sub("", page.read_text(encoding="utf-8")))
            write_text(page, text.replace("</head>", f"{_HEAD}</head>", 1))
        write_text(folder / "index.html", _index(folder, outcomes))
    return len(outcomes)


def _index(folder: Path, outcomes: Sequence[tuple[str, str, int, int]]) -> str:
    """Index page: a row for each batch, with counts and link."""
    pages = {(page.relative_to(folder).parts[1], page.stem): page for page in folder.glob("validations/**/*.html")}
    rows = []
    for suite, subject, count, passed in outcomes:
        place = pages[suite, _named(subject)].relative_to(folder).as_posix()
        word = "pass" if passed == count else "fail"
        rows.append(
            f'<tr><th><a href="expectations/{html.escape(quote(suite))}.html">{html.escape(suite)}</a></th>'
            f'<td><a href="{html.escape(quote(place))}">{html.escape(subject)}</a></td>'
            f'<td class="{word}">{passed} of {count} pass</td></tr>'
        )
    head = "<tr><th>suite</th><th>batch</th><th>expectations</th></tr>"
    note = "Results of the engine alone. The audit decides, and the report has its verdict."
    title = "<title>Data Docs of an audit</title>"
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">{title}{_HEAD}</head>'
        f"<body><h1>Data Docs</h1><p>{note}</p><table>{head}{''.join(rows)}</table></body></html>\n"
    )


def _parts(suite: str, table: SuiteTable, gates: Sequence[Gate]) -> Iterator[tuple[str, SuiteTable, list[Gate]]]:
    """A suite for each `where`, and the rows that it judges."""
    names: set[str] = set()
    for number, (where, indices) in enumerate(by_rows(gates)):
        name = _named(f"{suite}{where_words(where)}")
        if len(name.encode()) > _MAX_NAME or name in names:  # "a.b" and "a_b" have one file name
            name = f"{name.encode()[:_MAX_NAME].decode(errors='ignore')} {number}"
        names.add(name)
        problem = table.problem or absent_columns(table.frame, where)
        frame = table.frame if problem else rows_where(table.frame, where)
        yield name, replace(table, frame=frame, problem=problem), [gates[index] for index in indices]


def _named(subject: str) -> str:
    """A subject as a file name: GX makes folders of slashes."""
    return re.sub(r"[/\\\0]", "-", subject).replace(".", "_")


def _validate(
    context: Any, asset: Any, named: tuple[str, SuiteTable], gates: Sequence[Gate], run: Any
) -> tuple[int, int] | None:
    """Evaluate one table as a batch: the expectations, and those that passed."""
    import great_expectations as gx
    from great_expectations.core.result_format import ResultFormat
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )
    from great_expectations.validator.v1_validator import Validator

    suite, table = named
    expectations = [] if table.problem else built_expectations(table.frame, gates)
    if not expectations:
        if gates:
            get_logger(__name__).warning("data docs: %s of %s is skipped: %s", suite, table.subject,
                                         table.problem or "no values")  # fmt: skip
        return None
    batch = _named(table.subject)
    kept = gx.ExpectationSuite(name=suite, expectations=expectations)
    context.suites.add_or_update(kept)
    validator = Validator(
        batch_definition=asset.add_batch_definition_whole_dataframe(f"{suite}-{batch}"),
        batch_parameters={"dataframe": table.frame},
        result_format=ResultFormat.SUMMARY,
    )
    try:
        with time_limit(sum(own_seconds(gate) for gate in gates)):
            found = validator.validate_expectation_suite(kept)
    except (TimeoutError, SystemExit) as error:
        raised = f"{type(error).__name__}: {error}"
        raise PipelineError(f"--data-docs: custom expectation of suite {suite} on {table.subject}: {raised}") from error
    for result in found.results:
        result.success = bool(result.success)  # the store cannot write numpy.bool, which quantiles and means give
    found.meta |= {"run_id": run, "validation_time": run.run_time}
    key = ValidationResultIdentifier(ExpectationSuiteIdentifier(suite), run, batch)
    context.validation_results_store.store_validation_results(found, key)
    return len(found.results), sum(bool(result.success) for result in found.results)
