"""The report's sections on the run: training, energy, lineage, environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from governance.reports.figures import Series, chart
from governance.reports.footprint import footprint_section, views_section
from governance.reports.markup import (
    UNKNOWN,
    Html,
    compact,
    digest,
    duration,
    energy,
    join,
    number,
    share,
    size,
    table,
    tag,
)  # fmt: skip
from governance.reports.origins import cite


def training(found: Mapping[str, Any]) -> Html:
    """The curves and figures of training; in large letters where there was none."""
    run = found["training"]
    if run is None:
        return not_trained(found)
    stats, curves = run["stats"], run["curves"]
    execution = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sorted(run["execution"].items()))
    figures, attempts = cite(found, "/training/stats"), cite(found, "/training/attempts")
    pairs = [
        ("Artifact", [digest(run["digest"]), " ", run["path"]]),
        ("Steps", [number(stats.get("steps")), figures]),
        ("Tokens predicted", [number(stats.get("tokens")), figures]),
        *(
            [("Of these, by the run it went on from", [_before(stats["continued"]), figures])]
            if "continued" in stats
            else []
        ),
        ("Parameters", [number(stats.get("parameters")), figures]),
        ("Final training loss", [_nats(stats.get("final_loss")), figures]),
        ("Validation loss", [_nats(stats.get("validation_loss")), figures]),
        ("Bits per byte", [number(stats.get("bits_per_byte")), figures]),
        ("Attempts", [number(run["attempts"]), attempts]),
        ("Execution", execution or UNKNOWN),
        ("Peak that MFU refers to", run["peak_source"] or UNKNOWN),
        ("Product beside it", run["gemm_source"] or UNKNOWN),
    ]
    return join([facts_list(pairs), _curves(curves, cite(found, "/training/curves")), _checkpoints(found)])


def _short(value: float) -> str:
    return f"{value:,.3g}"


def _nats(loss: float | None) -> str:
    return UNKNOWN if loss is None else f"{number(loss)} nats per token"


def _before(continued: Mapping[str, Any]) -> str:
    return f"{number(continued['step'])} steps, {number(continued['tokens'])} tokens"


def not_trained(found: Mapping[str, Any]) -> Html:
    """Why there is no training."""
    verdict = found["summary"]["verdict"]
    is_open = verdict in ("PASS", "WAIVED")
    if found["begun"]:
        closed = "" if is_open else f" The verdict is now {verdict}: no further step is computed."
        small = tag("small", f"{_how_far(found)}{closed}")
        return tag("p", "Training was begun and is not finished.", small, class_="stop")
    if is_open:
        return tag(
            "p", "Not trained yet.", tag("small", "The gate is open; no finished training was found."), class_="stop"
        )
    why = tag("small", f"The verdict is {verdict}. No step was computed on this corpus.")
    return tag("p", "The gate is closed. Nothing was trained.", why, class_="stop")


def _how_far(found: Mapping[str, Any]) -> str:
    """Where the newest attempt of a training stood that is not finished."""
    attempts, verdicts = found["faults"]["attempts"], found["faults"]["diverged"]
    if not attempts:
        return f"Its record is {found['begun']}."
    last = attempts[-1]
    told = f"Attempt {number(last['attempt'])} came to step {number(last['to'])}"
    if verdicts and verdicts[-1]["attempt"] == last["attempt"]:
        return f"{told} and stopped with a verdict, which stands among the faults."
    return f"{told}; attempts and faults are below."


def facts_list(pairs: Sequence[tuple[str, Any]], cited: Html | None = None) -> Html:
    """Names and values in two columns; `cited` links each value to the evidence."""
    return tag("dl", [[tag("dt", name), tag("dd", value, cited)] for name, value in pairs], class_="facts")


def _curves(curves: Mapping[str, Any], cited: Html) -> Html:
    loss = [
        Series("training", curves["loss"], "a"),
        Series("validation", curves["validation_loss"], "b", dots=True),
    ]
    present = [series for series in loss if series.points]
    small = [
        ("Validation, bits per byte", "bits of loss per byte of text", "validation_bits_per_byte", "b", compact),
        ("Learning rate", "as applied", "learning_rate", "c", compact),
        ("Gradient norm", "before clipping", "grad_norm", "d", compact),
        ("Throughput", "tokens per second", "tokens_per_second", "e", compact),
        ("Model FLOPs utilisation", "share of the peak", "mfu", "a", share),
        ("Share of the measured matrix product", "of what this device reaches", "mfu_gemm", "b", share),
        ("Energy", "joules per token, of the node", "joules_per_token", "c", compact),
    ]
    charts = [
        chart(
            title, [Series(title, curves[name], style, dots=name.startswith("validation"))], "step", unit, write, cited
        )
        for title, unit, name, style, write in small
        if curves[name]
    ]
    whole = chart("Loss", present, "step", "nats per token", _short, cited) if present else None
    note = (
        "Curves of more than 400 points show the least and the greatest value of each stretch; metrics.jsonl holds all."
    )
    return join([whole, tag("div", charts, class_="multiples"), tag("p", note, class_="note")])


def _checkpoints(found: Mapping[str, Any]) -> Html:
    energies = {row["step"]: row for row in found["energy"]["checkpoints"]}
    lines = [
        [
            f"step {number(row['step'])}",
            digest(row["digest"]),
            row["path"],
            size(row["bytes"]),
            str(row["finished"] or UNKNOWN),
            energy(energies.get(row["step"], {}).get("marginal")),
            energy(energies.get(row["step"], {}).get("cumulative")),
            _with_ancestors(energies.get(row["step"], {})),
        ]
        for row in found["training"]["checkpoints"]
    ]
    cites = [
        cite(found, f"/training/checkpoints/{index}", "/energy/checkpoints")
        for index in range(len(found["training"]["checkpoints"]))
    ]
    head = [
        "checkpoint",
        "digest",
        "manifest",
        "size",
        "finished (UTC)",
        "energy since the one before",
        "up to here",
        "with ancestors",
    ]
    return table("Checkpoints that stand", head, lines, numeric=(3, 5, 6, 7), cites=cites)


def _with_ancestors(row: Mapping[str, float | None]) -> str:
    """Energy with that of models and data behind it; "at least" where some of it has no record or no upper bound."""
    told = energy(row.get("with_ancestors"))
    return told if row.get("with_ancestors") is None or row["with_ancestors_high"] is not None else f"at least {told}"


_WHOLE_NODE = "the whole node: what else ran there is in the figure"


def bounds(low: float | None, high: float | None) -> str:
    """An interval in words; an unknown upper bound is said, not left out."""
    if low is None:
        return "bounds unknown"
    return f"{energy(low)} to {energy(high)}" if high is not None else f"at least {energy(low)}, no upper bound"


def energy_section(found: Mapping[str, Any]) -> Html:
    """What was used, how that is known, what was wasted, and what has no meter."""
    data = found["energy"]
    total = data["total"]
    origin = {
        "ledger": "Everything that was run under this root, failed attempts included, but for this report.",
        "manifests": "The sum over the artifacts below; there is no ledger of failed attempts.",
    }[total["from"]]
    pairs = [
        ("Total", [tag("b", energy(total["joules"])), f" ({exact(total['joules'])})"]),
        ("Bounds", f"{bounds(total['low'], total['high'])} ({exact(total['low'])} to {exact(total['high'])})"),
        ("Method", "; ".join(total["methods"]) or UNKNOWN),
        ("Scope", "; ".join({"node": _WHOLE_NODE}.get(scope, scope) for scope in data["scopes"]) or _WHOLE_NODE),
        ("Surviving", exact(total["surviving"])),
        ("Wasted", exact(total["wasted"])),
    ]
    if total["running"]:
        pairs.insert(6, ("Still running", exact(total["running"])))
    if total["unmeasured_seconds"]:
        pairs.insert(
            6, ("Not measured", f"{duration(total['unmeasured_seconds'])} while another run's meter had the node")
        )
    if total["unseen_seconds"]:
        lost = f"at most the last {duration(total['unseen_seconds'])} before kills; that energy is in no figure here"
        pairs.append(("Lost by kills", lost))
    lines = [
        [
            row["stage"],
            energy(row["joules"]),
            bounds(row["low"], row["high"]),
            row["method"],
            duration(row["seconds"]),
            energy(row["all_attempts"]),
            energy(row["wasted"]),
        ]
        for row in data["stages"]
    ]
    head = ["stage", "this artifact", "bounds", "method", "time", "all attempts", "of that wasted"]
    cites = [cite(found, f"/energy/stages/{index}") for index in range(len(lines))]
    by_phase, by_cause = ([cite(found, f"/energy/{name}")] for name in ("phases", "wasted_by_cause"))
    wasted = [[cause, exact(value)] for cause, value in data["wasted_by_cause"].items()]
    phases = [[row["phase"], exact(row["joules"]), exact(row["wasted"])] for row in data["phases"]]
    missing = [tag("li", text) for text in data["missing"]]
    return join([
        tag("p", origin, class_="note"),
        facts_list(pairs, cite(found, "/energy/total")),
        views_section(found),
        footprint_section(found),
        table("Energy by stage", head, lines, numeric=(1, 2, 4, 5, 6), cites=cites),
        table("Energy by phase", ["phase", "all attempts", "of that wasted"], phases, numeric=(1, 2),
              cites=by_phase * len(phases)),
        table("Wasted, by cause", ["cause", "energy"], wasted, numeric=(1,), cites=by_cause * len(wasted)),
        [tag("h3", "What has no meter"), tag("ul", missing, class_="note")] if missing else None,
    ])  # fmt: skip


def exact(joules: float | None) -> str:
    """Joules to the millijoule."""
    return UNKNOWN if joules is None else f"{number(joules)} J"


def environment(found: Mapping[str, Any]) -> Html:
    """Hosts, commits and package versions; with the stages where they differ."""
    data = found["environment"]

    def told(values: Mapping[str, Sequence[str]]) -> Any:
        if len(values) == 1:
            return next(iter(values))
        return [
            tag("div", value, tag("span", f" ({', '.join(stages)})", class_="unit")) for value, stages in values.items()
        ]

    cited = cite(found, "/environment")
    places = facts_list([(name, told(values)) for name, values in data["places"].items()], cited)
    packages = [[name, told(values)] for name, values in data["packages"].items()]
    commands = [[row["stage"], tag("code", " ".join(map(str, row["command"] or [])))] for row in found["lineage"]]
    return join([
        places,
        table("Packages", ["package", "version"], packages, cites=[cited] * len(packages)),
        table("Commands", ["stage", "command"], commands, cites=[cited] * len(commands)),
    ])  # fmt: skip
