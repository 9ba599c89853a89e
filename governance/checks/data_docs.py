"""Great Expectations' Data Docs of an audit, on request.

Every table is judged once more, and the engine writes its static site ("Data Docs") into a folder: what it found, and
the suites. The pages show the *engine's* results, which fail open where `governance.checks.expectations` does
not: a pass over an empty table there is not a pass here. The verdict is in the report, not in Data Docs.

The pages load their styles, fonts and scripts from hosts outside (seven of them with 1.24), so without a network they
are bare text; writing them sends nothing. Price: as much as the audit's suites again, and about 0.1 s a
page.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from governance.checks.expectations import built_expectations, quiet_context
from governance.checks.suites import SuiteTable
from governance.errors import ConfigError, PipelineError, storage_errors
from governance.gate.policy import Gate
from governance.log import get_logger

_SITE = "assay"


def write_data_docs(tables: Iterable[tuple[str, SuiteTable]], gates: Sequence[Gate], folder: Path) -> int:
    """Write Data Docs into an empty folder; return the number of tables.

    A table with a problem, or without a gate that the engine can evaluate, is skipped with a warning.

    Raises:
        ConfigError: the folder is not empty.
        PipelineError: the engine could not draw a table.
        StorageError: the disk is full or refuses.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--data-docs {folder}: the folder is not empty. Name a new one.")
    context = quiet_context()
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.absolute())}
    index = {"class_name": "DefaultSiteIndexBuilder"}
    context.add_data_docs_site(
        _SITE, {"class_name": "SiteBuilder", "store_backend": store, "site_index_builder": index}
    )
    asset = context.data_sources.add_pandas("tables").add_dataframe_asset("table")
    shown = 0
    with storage_errors(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for suite, table in tables:
            shown += _validate(context, asset, (suite, table), [gate for gate in gates if gate.suite == suite])
        context.build_data_docs(site_names=[_SITE])
    pages = len(list(folder.glob("validations/**/*.html")))
    if pages != shown:  # the engine logs what it cannot draw, and goes on
        raise PipelineError(f"--data-docs {folder}: the engine wrote {pages} pages of {shown} tables")
    return shown


def _validate(context: Any, asset: Any, named: tuple[str, SuiteTable], gates: Sequence[Gate]) -> bool:
    """Evaluate one table and keep the results in the context."""
    import great_expectations as gx
    from great_expectations.core.result_format import ResultFormat
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )
    from great_expectations.validator.v1_validator import Validator

    suite, table = named
    expectations = [] if table.problem else built_expectations(table.frame, gates)
    if not expectations:
        if gates:
            get_logger(__name__).warning("data docs: %s is skipped: %s", table.subject, table.problem or "no values")
        return False
    subject = table.subject.replace("/", "-").replace(".", "_")  # the store makes folders of names
    name = suite if subject == suite else f"{suite}-{subject}"
    kept = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
    validator = Validator(
        batch_definition=asset.add_batch_definition_whole_dataframe(name),
        batch_parameters={"dataframe": table.frame},
        result_format=ResultFormat.SUMMARY,
    )
    found = validator.validate_expectation_suite(kept)
    for result in found.results:
        result.success = bool(result.success)  # the store cannot write numpy.bool, which quantiles and means give
    run = RunIdentifier(run_name="audit", run_time=datetime.datetime.now(datetime.UTC))
    found.meta |= {"run_id": run, "validation_time": run.run_time}
    key = ValidationResultIdentifier(ExpectationSuiteIdentifier(name), run, subject)
    context.validation_results_store.store_validation_results(found, key)
    return True
