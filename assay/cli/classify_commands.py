"""Handlers of `assay classify ...`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from assay.cli.output import artifact, say
from assay.cli.run_commands import Arguments, argv_of, checkpoint_of, load
from assay.config import LoadedRun, load_run
from governance.errors import MissingInput


def evaluate(arguments: Arguments) -> None:
    """Print the figures of a classifier on its test."""
    from assay.classifier_runs import evaluate_classifier, require_labels
    from assay.pipeline import corpus

    test: Path | None = arguments.test
    if test is not None and not test.is_file():
        raise MissingInput(f"--test {test}: no such file; give JSON Lines with a text and a label each")
    loaded, runtime = load(arguments, "data prepare")
    require_labels(loaded)
    artifacts = corpus(loaded, replace(runtime, make=False))
    checkpoint, origin = checkpoint_of(arguments, loaded, artifacts, runtime)
    made = evaluate_classifier(loaded, artifacts, checkpoint, runtime, test)
    say("\n".join(table(made.stats)), **artifact(made, runtime.root), **made.stats, origin=origin)
    say(f"{runtime.root / made.folder / 'predictions.json'}")


def folds(arguments: Arguments) -> None:
    """Cross-validate, and print each fold and the mean."""
    from assay.classifier_runs import cross_validate

    loaded, runtime = load(arguments, "data prepare")

    def part(chosen: str) -> LoadedRun:
        return load_run(arguments.config, [*arguments.overrides, chosen], arguments.more)

    made = cross_validate(loaded, part, runtime, arguments.nproc, argv_of(arguments, runtime))
    names = {"accuracy": "accuracy", "macro_f1": "macro-F1", "ece_before": "ECE", "ece_after": "ECE, scaled"}
    lines = ["fold  train   test  " + "  ".join(f"{title:>11}" for title in names.values())]
    for row in made.stats["folds"]:
        values = "  ".join(f"{row[name]:>11.4f}" for name in names)
        lines.append(f"{row['fold']:>4}  {row['train']:>5,}  {row['test']:>5,}  {values}")
    why = "in every fold, so without an interval"
    lines += [f"mean {title}: {_with_interval(made.stats['mean'][name], why)}" for name, title in names.items()]
    say("\n".join(lines), **artifact(made, runtime.root), **made.stats)


def table(stats: Mapping[str, Any]) -> Iterator[str]:
    """Lines with the figures of an evaluation."""
    grouped = f" in {stats['groups']:,} groups" if stats["groups"] < stats["documents"] else ""
    yield f"{stats['documents']:,} test documents{grouped}; 95 % intervals"
    yield f"accuracy {_with_interval(stats['accuracy'])}"
    yield f"macro-F1 {_with_interval(stats['macro_f1'])}"
    width = max(5, *map(len, stats["classes"]))
    yield f"{'label':<{width}}  documents  precision                recall                       F1"
    for name, row in stats["classes"].items():
        shares = f"{_with_interval(row['precision']):<23}  {_with_interval(row['recall']):<23}"
        yield f"{name:<{width}}  {row['documents']:>9,}  {shares}  {row['f1']:.4f}"
    yield "confusion: true label (row), predicted label (column)"
    columns = [max(len(name), 6) for name in stats["confusion"]]
    yield " " * width + "".join(f"  {name:>{size}}" for name, size in zip(stats["confusion"], columns, strict=True))
    for name, row in stats["confusion"].items():
        cells = (f"  {cell['documents']:>{size},}" for cell, size in zip(row.values(), columns, strict=True))
        yield f"{name:<{width}}{''.join(cells)}"
    found = stats["calibration"]
    before, after = found["before"], found["after"]
    yield f"calibration error (ECE) {_with_interval(before['ece'])}, {before['nats']:.4f} nats"
    if stats["fitted_on"]:
        fitted = f"{found['temperature']:.3f}, fitted on {stats['fitted_on']:,} validation documents"
        yield f"at temperature {fitted}: {_with_interval(after['ece'])}, {after['nats']:.4f} nats"
        yield f"change of ECE {_with_interval(found['ece_change'])}"
    yield "probability    documents  mean probability  accuracy"
    for row in after["reliability"]:
        bounds = f"{row['from']:.3f} to {row['to']:.3f}"
        yield f"{bounds}  {row['documents']:>8,}  {row['probability']:>16.4f}  {row['accuracy']:>8.4f}"


def _with_interval(row: Mapping[str, Any], why: str = "without an interval: there is one group") -> str:
    """A figure with its interval; `why` it has none."""
    if row["value"] is None:
        return "none"
    if row["lower"] is None:
        return f"{row['value']:.4f} {why}"
    return f"{row['value']:.4f} [{row['lower']:.4f}, {row['upper']:.4f}]"
