"""Report of a scaling law as one page, the prediction first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from governance.reports.html.markup import Html, compact, energy, number, table, tag
from governance.reports.html.svg_figures import STYLES, Curve, chart
from pretrain.experiments.experiment_report import Found, method_section, report_page
from pretrain.experiments.scaling.coordinates import part_in_words
from pretrain.experiments.scaling.scaling_law import ScalingLaw

_POINTS = 24  # of a curve of the law
_NAMES = (
    ("constant", "E, nats: the loss that no size and no text removes"),
    ("parameter_factor", "A"), ("parameter_exponent", "alpha"), ("token_factor", "B"), ("token_exponent", "beta"),
    ("size_exponent", "exponent of the best size in the FLOPs, beta / (alpha + beta)"),
)  # fmt: skip


def scaling_page(found: Found) -> str:
    """The whole page."""
    body = [_first(found), _curves(found), _law(found), _coordinates(found), _rungs(found), _method(found)]
    return report_page("Scaling law of this run", "scaling", body)


def _loss(value: float) -> str:
    return f"{value:.3f}"


def _interval(row: Found) -> str:
    return f"{_loss(row['loss'])} [{_loss(row['low'])},\u00a0{_loss(row['high'])}]"


def _first(found: Found) -> Html:
    target, best = found["target"], found["best"]
    rows = [
        [name, compact(row["parameters"]), compact(row["tokens"]), compact(row["flops"]), _interval(row)]
        for name, row in (("this run", target), ("the best for its FLOPs", best))
    ]
    lead = (
        f"The ladder predicts a validation loss of {_loss(target['loss'])} nats per token for this run (95 % interval "
        f"{_loss(target['low'])} to {_loss(target['high'])}), from {len(found['rungs'])} trainings"
        + (f" that took {energy(found['joules'])}." if found["joules"] is not None else ".")
    )
    head = ["", "parameters", "tokens", "FLOPs", "loss, 95 % interval"]
    return tag(
        "section",
        tag("p", lead, class_="lead"),
        table("Prediction", head, rows, numeric=(1, 2, 3)),
        [tag("p", words, class_="note") for words in found["warnings"]],
        class_="reader",
    )


def _curves(found: Found) -> Html:
    """Loss over size for each budget, and predicted over measured loss."""
    rungs, law = found["rungs"], ScalingLaw(*found["fitted"])
    budgets = sorted({row["budget"] for row in rungs})
    measured, fitted = [], []
    for index, budget in enumerate(budgets):
        rows = sorted((row for row in rungs if row["budget"] == budget), key=lambda row: row["parameters"])
        style = STYLES[index % len(STYLES)]
        name = f"{100 * budget:g} % of the run's FLOPs"
        measured.append(Curve(name, [(math.log10(row["parameters"]), row["loss"]) for row in rows], style, dots=True))
        fitted.append(Curve(name, _fitted(law, rows), style))
    drawn = [
        chart("Loss by size, measured", measured, "log10 of the parameters", "nats per token", _loss),
        chart("Loss by size, by the law", fitted, "log10 of the parameters", "nats per token", _loss),
    ]
    return tag("section", tag("h2", "Curves of equal FLOPs"), tag("div", drawn, class_="charts"))


def _fitted(law: ScalingLaw, rows: Sequence[Found]) -> list[tuple[float, float]]:
    """The law along a budget's curve, between its smallest and largest size."""
    low, high = (math.log(row["parameters"]) for row in (rows[0], rows[-1]))
    product = math.exp(sum(math.log(row["parameters"] * row["tokens"]) for row in rows) / len(rows))
    found = []
    for at in range(_POINTS):
        parameters = math.exp(low + (high - low) * at / (_POINTS - 1))
        found.append((math.log10(parameters), law.loss(parameters, product / parameters)))
    return found


def _law(found: Found) -> Html:
    law = found["law"]
    rows = [
        [words, f"{law[name]:.4g}", " to ".join(f"{end:.4g}" for end in law["intervals"][name])]
        for name, words in _NAMES
    ]
    other = found["approach_2_exponent"]
    words = "not determined by these curves" if other is None else f"{other:.3f}"
    about = (
        f"Standard deviation of a training about the law: {found['noise']:.4f} nats. Exponent of the best size by "
        f'parabolas ("approach 2", biased, arXiv:2603.22339): {words}.'
    )
    return tag(
        "section",
        tag("h2", "Law: E + A N^-alpha + B D^-beta"),
        table("Parameters of the law", ["", "value", "95 % interval"], rows, numeric=(1,)),
        tag("p", about, class_="note"),
    )


def _coordinates(found: Found) -> Html:
    """Magnitudes of activations by width, and whether the rate transfers."""
    check = found["coordinates"]
    title = tag("h2", "Does the learning rate transfer?")
    if check is None:
        return tag("section", title, tag("p", "Not checked: the model has one head.", class_="note"))
    widths, curves = [math.log2(width) for width in check["widths"]], []
    for index, (name, sizes) in enumerate(check["sizes"].items()):
        points = [*zip(widths, (math.log2(max(size, 1e-30)) for size in sizes), strict=True)]
        curves.append(Curve(part_in_words(name), points, STYLES[index % len(STYLES)], dots=True))
    answer = "Yes" if check["transfers"] else "No"
    words = (
        f"{answer}: after {check['steps']} steps at the run's rate the output that grows most grows as "
        f"width^{check['largest']:.2f} ({part_in_words(check['worst'])}); a rate transfers up to an exponent of "
        f"{check['limit']:g} (coordinate check, arXiv:2203.03466)."
    )
    drawn = chart("Activations by width", curves, "log2 of the width", "log2 of the mean magnitude", _loss)
    return tag("section", title, tag("p", words, class_="note"), tag("div", drawn, class_="charts"))


def _rungs(found: Found) -> Html:
    rows = [
        [f"width {row['width']:,}", number(row["layers"]), number(row["parameters"]), number(row["tokens"]),
         number(row["steps"]), number(row["seed"]), _loss(row["loss"]), f"{row['loss'] - row['fitted']:+.4f}",
         row["training"]]
        for row in found["rungs"]
    ]  # fmt: skip
    head = ["model", "layers", "parameters", "tokens", "steps", "seed", "loss", "loss minus law", "training"]
    return tag("section", tag("h2", "Rungs"), table("Trainings", head, rows, numeric=range(1, 8), shown=len(rows)))


def _method(found: Found) -> Html:
    drawn = found["resamples"]
    texts = [
        "N is the number of weights that a token multiplies: look-ups are none, the output projection counts. D is the "
        "number of tokens trained on. FLOPs are 6 N D. Each rung is a training of its own with a whole schedule.",
        "The exponents are searched, and E, A and B solved by least squares without negative values (variable "
        "projection).",
        f"Intervals: residuals with the spread of {len(found['rungs'])} minus 5 degrees of freedom are drawn, the law "
        f"is fitted again ({drawn['determined']} of {drawn['drawn']} resamples determined one), and the noise of one "
        f"training is added. They assume that the law holds beyond the ladder.",
    ]
    return method_section(texts, found["rungs"])
