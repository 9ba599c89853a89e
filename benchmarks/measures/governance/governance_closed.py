"""Ways in which the plain engine passes by accident, run against Assay's gate, and missing shards."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.measures.goals import Goal, figure


def _gate(**fields: Any) -> Any:
    from governance.gate.policy import Gate

    return Gate(id="documents.x", suite="documents", owner="data", why="of the benchmark", **fields)


def _plain(table: pd.DataFrame, expectations: list[Any]) -> bool:
    """Result of Great Expectations on a table."""
    import great_expectations as gx

    from governance.checks.expectations import quiet_context

    asset = quiet_context().data_sources.add_pandas("plain").add_dataframe_asset("table")
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch(batch_parameters={"dataframe": table})
    return bool(batch.validate(gx.ExpectationSuite(name="plain", expectations=expectations)).success)


def _collision() -> tuple[bool, bool]:
    """Three files of one asset through one checkpoint, the second one bad."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    from governance.checks.expectations import quiet_context, run_suite

    tables = [pd.DataFrame({"x": values}) for values in ([1.0], [99.0], [1.0])]
    with tempfile.TemporaryDirectory() as scratch:
        for number, table in enumerate(tables):
            table.to_parquet(Path(scratch) / f"{number}.parquet")
        context = quiet_context()
        asset = context.data_sources.add_pandas_filesystem("f", base_directory=scratch).add_parquet_asset("a")
        suite = context.suites.add(
            gx.ExpectationSuite(name="s", expectations=[gxe.ExpectColumnValuesToBeBetween(column="x", max_value=5)])
        )
        definitions = [
            context.validation_definitions.add(
                gx.ValidationDefinition(
                    name=f"v{number}", data=asset.add_batch_definition_path(f"b{number}", path=f"{number}.parquet"),
                    suite=suite,
                )
            )
            for number in range(3)
        ]  # fmt: skip
        checkpoint = context.checkpoints.add(gx.Checkpoint(name="c", validation_definitions=definitions))
        theirs = bool(checkpoint.run().success)
    gate = _gate(expectation="between", column="x", max=5.0)
    ours = all(run_suite(table, [gate], "t")[0].status == "pass" for table in tables)
    return theirs, ours


def _lost_expectation() -> tuple[bool, bool]:
    """A suite that lost the one expectation which fails, as a stored one does with a class that is not imported."""
    import great_expectations.expectations as gxe

    from governance.checks import expectations

    table = pd.DataFrame({"x": [99.0], "y": [1.0]})
    theirs = _plain(table, [gxe.ExpectColumnValuesToBeBetween(column="y", max_value=5)])
    gates = [_gate(expectation="between", column=name, max=5.0) for name in ("x", "y")]
    whole = expectations._execute
    expectations._execute = lambda rows, built: whole(rows, {1: built[1]})
    try:
        ours = all(result.status == "pass" for result in expectations.run_suite(table, gates, "t"))
    finally:
        expectations._execute = whole
    return theirs, ours


def _table(table: pd.DataFrame, max_missing: float = 0.0) -> tuple[bool, bool]:
    """An expectation on a table that gives it next to nothing to judge."""
    import great_expectations.expectations as gxe

    from governance.checks.expectations import run_suite

    theirs = _plain(table, [gxe.ExpectColumnValuesToBeBetween(column="x", max_value=5)])
    gate = _gate(expectation="between", column="x", max=5.0, max_missing=max_missing)
    return theirs, run_suite(table, [gate], "t")[0].status == "pass"


def _empty_suite() -> tuple[bool, bool]:
    """A suite without expectations; Assay refuses a policy without gates, and a missing result never passes."""
    from governance.checks.expectations import run_suite
    from governance.gate.policy import Policy

    table = pd.DataFrame({"x": [1.0]})
    try:
        Policy(name="none", owners={}, licences={"allowed": ()}, gate=())
        written = True
    except ValueError:
        written = False
    return _plain(table, []), written or bool(run_suite(table, [], "t"))


def _edge(
    values: list[Any], theirs: str, plain: dict[str, Any], dtype: str = "object", **fields: Any
) -> tuple[bool, bool]:
    """A column of which the engine holds something else than the policy says."""
    import great_expectations.expectations as gxe

    from governance.checks.expectations import run_suite

    table = pd.DataFrame({"x": pd.Series(values, dtype=dtype)})
    [result] = run_suite(table, [_gate(column="x", **fields)], "t")
    return _plain(table, [getattr(gxe, theirs)(column="x", **plain)]), result.status == "pass"


def fail_opens() -> list[Goal]:
    """Nine ways, each once with the plain engine and once with ours."""
    from governance.checks.expectations import quiet_context

    quiet_context()
    values, mean, regex = (
        "ExpectColumnValuesToBeBetween",
        "ExpectColumnMeanToBeBetween",
        "ExpectColumnValuesToMatchRegex",
    )
    wide = float(2**53)
    ways: dict[str, Callable[[], tuple[bool, bool]]] = {
        "shards_collide": _collision,
        "expectation_lost": _lost_expectation,
        "empty_table": lambda: _table(pd.DataFrame({"x": pd.Series([], dtype=float)})),
        "nearly_all_null": lambda: _table(pd.DataFrame({"x": [None] * 99 + [1.0]}), 0.5),
        "empty_suite": _empty_suite,
        "infinity_in_objects": lambda: _edge([1.0, -np.inf], values, {"max_value": 5}, expectation="between", max=5.0),
        "mean_overflows": lambda: _edge(
            [-1e308] * 20, mean, {"max_value": 5}, "float64", expectation="mean_between", max=5.0
        ),
        "integer_is_rounded": lambda: _edge(
            [2**53 + 1], values, {"max_value": wide}, "int64", expectation="between", max=wide
        ),
        "line_feed_after_all": lambda: _edge(
            ["a\n"], regex, {"regex": "^a+$"}, expectation="match_regex", regex="^a+$"
        ),
    }
    goals, theirs_open = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, way in ways.items():
            theirs, ours = way()
            theirs_open += theirs
            goals.append(Goal(f"fail_opens.{name}", int(ours), 0, "<=", f"the plain engine passes: {theirs}"))
    return [*goals, figure("fail_opens.plain_engine", theirs_open, "of 9 ways")]


def lost_shards() -> list[Goal]:
    """Workers' results dropped, doubled and swapped at random; none may pass."""
    from governance.checks.gathering import Expected, SuiteSection, merge_findings, write_finding
    from governance.checks.suites import SuiteTable

    gates = (_gate(expectation="between", column="x", max=5.0),)
    section = SuiteSection(suite="documents", gates=gates)
    shards = [Expected(f"clean/0/features/{number}.parquet", f"{number:064x}") for number in range(20)]
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / f"{number}.json" for number in range(20)]
        for shard, path in zip(shards, paths, strict=True):
            write_finding(section, SuiteTable(shard.subject, pd.DataFrame({"x": [1.0]})), shard, path)
        findings = [json.loads(path.read_bytes()) for path in paths]
    chance = np.random.default_rng(8)
    passed = 0
    for turn in range(1000):
        came = list(findings)
        place, other = chance.choice(20, 2, replace=False).tolist()
        if turn % 4 == 0:
            del came[place]
        elif turn % 4 == 1:
            came.append(came[place])
        elif turn % 4 == 2:
            came[place] = {**came[place], "subject": came[other]["subject"]}
        else:
            came[place] = {**came[place], "results": []}
        found = merge_findings(section, shards, came, "clean/0/features")
        passed += all(result.status == "pass" for result in found)
    whole = merge_findings(section, shards, findings, "clean/0/features")
    return [
        Goal("lost_shards.passed", passed, 0, "<=", "1,000 times a finding was dropped, doubled, renamed or emptied"),
        Goal("lost_shards.whole_passes", int(all(result.status == "pass" for result in whole)), 1),
    ]
