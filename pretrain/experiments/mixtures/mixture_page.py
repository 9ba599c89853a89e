"""Report of the mixture experiment as one page, the proposed weights first."""

from __future__ import annotations

from governance.reports.html.markup import Html, compact, energy, number, table, tag
from governance.reports.html.svg_figures import STYLES, Curve, chart
from pretrain.experiments.experiment_report import Found, method_section, report_page


def mixture_page(found: Found) -> str:
    """The whole page."""
    body = [_first(found), _curves(found), _trainings(found), _method(found)]
    return report_page("Weights of the sources", "mixture", body)


def proposal(sources: list[Found]) -> list[str]:
    """Lines for the run's file."""
    weights = ", ".join(f"{row['name']} = {row['best']:g}" for row in sources)
    return ["[[train.mixture]]", "from_step = 1", f"weights = {{ {weights} }}"]


def _first(found: Found) -> Html:
    gain = found["gain"]
    shown = "" if gain["low"] > 0 else "No better weights than the run's own are shown. "
    lead = (
        f"{shown}By the law the proposed weights lower the validation loss by {gain['nats']:.4f} nats per token (95 % "
        f"interval {gain['low']:.4f} to {gain['high']:.4f}) against the run's own, from {len(found['rungs'])} trainings"
        + (f" that took {energy(found['joules'])}." if found["joules"] is not None else ".")
    )
    rows = [
        [row["name"], compact(row["tokens"]), f"{row['own']:.4f}", f"{row['best']:.4f}",
         f"{row['low']:.4f} to {row['high']:.4f}", f"{row['cap']:.4f}", f"{row['epochs']:.2g}"]
        for row in found["sources"]
    ]  # fmt: skip
    head = [
        "source",
        "tokens",
        "weight of the run",
        "proposed",
        "95 % interval",
        "largest weight",
        "times read in the run",
    ]
    return tag(
        "section",
        tag("p", lead, class_="lead"),
        table("Weights", head, rows, numeric=range(1, 7), shown=len(rows)),
        tag("pre", "\n".join(proposal(found["sources"]))),
        [tag("p", words, class_="note") for words in found["warnings"]],
        class_="reader",
    )


def _curves(found: Found) -> Html:
    """Loss of each training over the weight of each source."""
    drawn = []
    for at, source in enumerate(found["sources"]):
        points = sorted((row["weights"][at], row["loss"]) for row in found["rungs"])
        curve = Curve(source["name"], points, STYLES[at % len(STYLES)], dots=True, line=False)
        drawn.append(chart(f"Loss by the weight of {source['name']}", [curve], "weight", "nats per token", _loss))
    return tag("section", tag("h2", "Measured"), tag("div", drawn, class_="charts"))


def _loss(value: float) -> str:
    return f"{value:.3f}"


def _trainings(found: Found) -> Html:
    names = [row["name"] for row in found["sources"]]
    rows = [
        [row["training"], *(f"{weight:.4f}" for weight in row["weights"]), number(row["steps"]), number(row["tokens"]),
         f"{row['loss']:.4f}", f"{row['loss'] - row['fitted']:+.4f}"]
        for row in found["rungs"]
    ]  # fmt: skip
    head = ["training", *names, "steps", "tokens", "loss", "loss minus law"]
    columns = range(1, len(head))
    return tag("section", tag("h2", "Trainings"), table("Trainings", head, rows, numeric=columns, shown=len(rows)))


def _method(found: Found) -> Html:
    texts = [
        "Each training reads the share of every source's rows that its steps are of the run's, so that with the same "
        "weights each source is repeated as often as in the whole run (arXiv:2606.07597). All have the run's seed and "
        "the same validation rows.",
        "Law: sum of a w + b w log w over the sources, with b not below 0, by least squares in which a training counts "
        "less the higher its loss. The proposed weights have the law's least loss where no source is read more than "
        "mixture.max_epochs times.",
        f"Intervals are those of a bootstrap with the spread of trainings that the fit leaves out "
        f"({found['noise']:.4f} nats). They assume that the order of mixtures does not change with the number of "
        f"tokens, nor with the size of the model.",
    ]
    return method_section(texts, found["rungs"])
