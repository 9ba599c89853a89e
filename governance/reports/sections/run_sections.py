"""Run sections: training, environment, steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from governance.reports.facts.citations import cite
from governance.reports.facts.training_facts import classifies
from governance.reports.html.markup import (
    UNKNOWN,
    Child,
    Html,
    compact,
    digest,
    energy,
    fold,
    foreign,
    join,
    number,
    share,
    size,
    table,
    tag,
)
from governance.reports.html.svg_figures import Curve, chart
from governance.reports.sections.model_words import MODEL_FACTS, loss_unit, model_facts

_CURVES_SHOWN = 5  # sources or languages of a chart, those with most validation tokens


def training(facts: Mapping[str, Any]) -> Html:
    """The model, the curves, and validation by source and language."""
    run = facts["training"]
    if run is None:
        return tag("p", "Nothing was trained.", class_="none")
    return join([facts_list(model_facts(facts), cite(facts, *MODEL_FACTS)), _curves(facts), _validation(facts)])


def not_trained(facts: Mapping[str, Any]) -> Html | None:
    """Notice on a missing or unfinished training, unless the verdict explains it."""
    if facts["training"]:
        return None
    verdict = facts["summary"]["verdict"]
    is_open = verdict in ("PASS", "WAIVED")
    if facts["begun"] and not is_open and (steps := _all_steps(facts)):
        small = tag("small", f"The verdict is now {verdict}: nothing further may be trained on this corpus.")
        return tag(
            "p", f"A training computed all of its {number(steps)} steps before this verdict.", small, class_="stop"
        )
    if facts["begun"]:
        closed = "" if is_open else f" The verdict is now {verdict}, so training cannot continue."
        small = tag("small", f"{_how_far(facts)}{closed}")
        return tag("p", "Training started and is not finished.", small, class_="stop")
    if is_open:
        return tag(
            "p", "Not trained yet.", tag("small", "The gate is open; no finished training was found."), class_="stop"
        )
    return None


def _all_steps(facts: Mapping[str, Any]) -> int:
    """Steps of a training that computed all of them; else 0."""
    attempts, planned = facts["faults"]["attempts"], facts["faults"]["planned"]
    return planned if planned and attempts and attempts[-1]["to"] >= planned else 0


def _how_far(facts: Mapping[str, Any]) -> str:
    """Progress of an unfinished training's newest attempt."""
    attempts, verdicts = facts["faults"]["attempts"], facts["faults"]["diverged"]
    if not attempts:
        return f"Its record is {facts['begun']}."
    last = attempts[-1]
    progress = f"Attempt {number(last['attempt'])} reached step {number(last['to'])}"
    if verdicts and verdicts[-1]["attempt"] == last["attempt"]:
        return f"{progress} and was stopped because it diverged; see the faults."
    return f"{progress}; attempts and faults are listed below."


def facts_list(pairs: Sequence[tuple[str, Child]], citation: Html | None) -> Html:
    """Definition list of names and values with one evidence mark."""
    entries = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs]
    return tag("div", tag("dl", entries, class_="facts"), citation, class_="facts-box")


def _curves(facts: Mapping[str, Any]) -> Html:
    run = facts["training"]
    curves, citation = run["curves"], cite(facts, "/training/curves")
    groups = cite(facts, "/training/validation")
    unit = loss_unit(run)
    charts: list[Html | None] = [
        _chart("Loss", unit, [("training", curves["loss"], "a"), ("validation", curves["validation_loss"], "b")],
               citation, dots=("validation",)),
        _by_group("Validation loss by source", unit, run["validation"]["source"], "loss", groups),
        _by_language(run, groups),
        _chart("Throughput", "tokens per second", [("tokens per second", curves["tokens_per_second"], "a")], citation),
        _chart("Utilisation", "share of peak; share of measured matmul rate",
               [("MFU", curves["mfu"], "a"), ("of measured matmul", curves["mfu_gemm"], "b")], citation, write=share),
        _chart("Learning rate", "as applied", [("learning rate", curves["learning_rate"], "a")], citation),
        _chart("Gradient norm", "before clipping", [("gradient norm", curves["grad_norm"], "a")], citation),
        _chart("Energy per token", "joules per token, whole node",
               [("joules per token", curves["joules_per_token"], "a")], citation),
    ]  # fmt: skip
    return tag("div", [one for one in charts if one is not None], class_="charts")


def _chart(
    title: str,
    unit: str,
    curves: Sequence[tuple[str, Any, str]],
    citation: Html,
    *,
    dots: Sequence[str] = (),
    write: Any = compact,
) -> Html | None:
    """A chart of the curves that have points."""
    drawn = [Curve(name, points, style, dots=name in dots) for name, points, style in curves if points]
    return chart(title, drawn, "step", unit, write, citation) if drawn else None


def _by_group(title: str, unit: str, rows: Sequence[Mapping[str, Any]], field: str, citation: Html) -> Html | None:
    shown = [row for row in rows if row["curves"][field]][:_CURVES_SHOWN]
    drawn = [
        Curve(row["name"], row["curves"][field], style, dots=True) for row, style in zip(shown, "abcde", strict=False)
    ]
    return chart(title, drawn, "step", unit, compact, citation) if drawn else None


def _by_language(run: Mapping[str, Any], citation: Html) -> Html | None:
    """Bits per byte, which compare across languages; the loss of a classifier."""
    unit, field = (loss_unit(run), "loss") if classifies(run["config"]) else ("bits per byte", "bits_per_byte")
    return _by_group("Validation by language", unit, run["validation"]["language"], field, citation)


def _validation(facts: Mapping[str, Any]) -> Html | None:
    """The last validation of each source and language."""
    bits = not classifies(facts["training"]["config"])
    lines = [
        [foreign(row["name"]), by, number(row["loss"]),
         UNKNOWN if row["loss_stderr"] is None else f"± {row['loss_stderr']:.3f}",
         *[number(row["bits_per_byte"])] * bits, number(row["tokens"])]
        for by in ("source", "language")
        for row in facts["training"]["validation"][by]
    ]  # fmt: skip
    head = [
        "validation subset",
        "by",
        f"loss, {loss_unit(facts['training'])}",
        "standard error",
        *["bits per byte"] * bits,
        "tokens",
    ]
    return table("Last validation by source and language", head, lines, numeric=range(2, len(head)),
                 citation=cite(facts, "/training/validation"), shown=6) if lines else None  # fmt: skip


def training_folded(facts: Mapping[str, Any]) -> Iterator[Html]:
    """The checkpoints and the exact figures of the training."""
    run = facts["training"]
    if run is None:
        return
    energies = {row["step"]: row for row in facts["energy"]["checkpoints"]}
    lines = [
        [
            f"step {number(row['step'])}",
            [digest(row["digest"]), tag("br"), tag("span", row["path"], class_="note")],
            size(row["bytes"]),
            str(row["finished"] or UNKNOWN),
            energy(energies.get(row["step"], {}).get("marginal")),
            energy(energies.get(row["step"], {}).get("cumulative")),
            _with_ancestors(energies.get(row["step"], {})),
        ]
        for row in run["checkpoints"]
    ]
    head = ["checkpoint", "digest, manifest", "size", "finished (UTC)", "energy since previous", "cumulative",
            "with ancestors"]  # fmt: skip
    citation = cite(facts, *(f"/training/checkpoints/{index}" for index in range(len(lines))), "/energy/checkpoints")
    title = f"{len(lines):,} checkpoints on disk" if len(lines) != 1 else "1 checkpoint on disk"
    note = "Curves of more than 400 points show the minimum and maximum of each stretch; metrics.jsonl has all points."
    yield fold(title, table("Checkpoints", head, lines, numeric=(2, 4, 5, 6), citation=citation),
               tag("p", note, class_="note"))  # fmt: skip
    if run["profiles"]:
        yield _profiles(facts)


def _profiles(facts: Mapping[str, Any]) -> Html:
    """Tables of profiled time, one per window."""
    citation, tables = cite(facts, "/training/profiles"), []
    for row in facts["training"]["profiles"]:
        lines = [
            [foreign(line["name"]), foreign(line["shapes"]), number(line["calls"]), compact(line["seconds"]),
             share(line["share"])]
            for line in row["top"]
        ]  # fmt: skip
        steps = f"steps {number(row['first'])} to {number(row['step'])}, attempt {number(row['attempt'])}"
        head = ["name", "shapes", "calls", "seconds", "share"]
        tables += [
            table(f"Profile of {steps}: {row['time']}", head, lines, numeric=(2, 3, 4), citation=citation, shown=20),
            tag("p", f"{compact(row['seconds'])} s per step in total. Trace of rank 0: ",
                tag("code", foreign(row["path"])), class_="note"),
        ]  # fmt: skip
    return fold("Profile of a step", *tables)


def _with_ancestors(row: Mapping[str, float | None]) -> str:
    """Energy with ancestors; "at least" without a record or an upper bound."""
    text = energy(row.get("with_ancestors"))
    return text if row.get("with_ancestors") is None or row["with_ancestors_high"] is not None else f"at least {text}"


def environment_folded(facts: Mapping[str, Any]) -> Iterator[Html]:
    """Hosts, commits, package versions and commands; with the stages where they differ."""
    data = facts["environment"]

    def by_stage(values: Mapping[str, Sequence[str]]) -> Any:
        if len(values) == 1:
            return next(iter(values))
        return [
            tag("div", value, tag("span", f" ({', '.join(stages)})", class_="unit")) for value, stages in values.items()
        ]

    citation = cite(facts, "/environment")
    packages = [[name, by_stage(values)] for name, values in data["packages"].items()]
    commands = [[row["stage"], tag("code", " ".join(map(str, row["command"] or [])))] for row in facts["lineage"]]
    yield fold("Environment: hosts, commit, packages, commands",
               facts_list([(name, by_stage(values)) for name, values in data["places"].items()], citation),
               table("Packages", ["package", "version"], packages, citation=citation, shown=40),
               table("Commands", ["stage", "command"], commands, citation=citation, shown=20))  # fmt: skip
