"""Report of the experiment as one page.

The claims come first, for an executive; tables, method and all seeds follow, for a reviewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from governance.reports.html.markup import UNKNOWN, Html, compact, energy, fold, number, table, tag
from governance.reports.html.svg_figures import STYLES, Curve, chart, interval_about
from pretrain.experiments.claim_findings import HELD, NOT_HELD, UNDECIDED, attends
from pretrain.experiments.claims_config import NAMES
from pretrain.experiments.experiment_report import Found, report_page

_TONES = {HELD: "good", NOT_HELD: "bad", UNDECIDED: "warn"}
_MATCHED = {"parameters": "equal parameters", "flops": "equal FLOPs"}


def claims_page(found: Found) -> str:
    """The whole page."""
    return report_page("The Transformer's claims, tested", "claims", [_first(found), _reviewer(found)])


def _name(row: Found, several: bool) -> str:
    """Model of a row; its matching where there are several."""
    name = NAMES[row["architecture"]]
    return name if not several or row["architecture"] == "transformer" else f"{name}, {_MATCHED[row['matching']]}"


def _pill(verdict: str) -> Html:
    return tag("span", verdict.replace(" ", "\u00a0"), class_=f"pill {_TONES[verdict]}")


def _with_interval(found: Found | None, write: Callable[[float], str] = compact) -> str:
    """A mean with its interval."""
    if found is None:
        return UNKNOWN
    return f"{write(found['mean'])} [{write(found['low'])},\u00a0{write(found['high'])}]"


def _within(found: Found | None, highest: float = math.inf) -> Found | None:
    """An interval of a time, rate, energy or share, within bounds."""
    return found and {**found, "low": max(0.0, found["low"]), "high": min(highest, found["high"])}


def _short(value: float) -> str:
    return f"{value:.3f}"


def _points(value: float) -> str:
    """Difference of two shares, in percentage points."""
    return f"{100 * value:+.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _writer(claim: Found) -> Callable[[float], str]:
    return {"speed": lambda value: f"{value:.2f}", "recall": _points, "attention_recall": _points}.get(
        claim["id"], lambda value: f"{value:+.3f}"
    )


def _several(found: Found) -> bool:
    return len(found["method"]["config"]["matching"]) > 1


def _transformer(found: Found) -> Found:
    """Size of the Transformer, wherever `claims.architectures` names it."""
    return next(row for row in found["models"] if row["architecture"] == "transformer")


def _first(found: Found) -> Html:
    """Page one: each claim, with its verdict, n and interval."""
    config, claims = found["method"]["config"], found["claims"]
    counts = {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in _TONES}
    lead = (
        f"Of {len(claims)} claims {counts[HELD]} held, {counts[NOT_HELD]} did not hold and {counts[UNDECIDED]} are "
        f"undecided, for models of {_transformer(found)['parameters']:,} parameters and {config['budgets'][-1]:,} "
        f"tokens on this machine. “It” is the Transformer; its opponents are recurrent networks."
    )
    rows = []
    for claim in claims:
        against = claim["against"]
        held = sum(row["verdict"] == HELD for row in against)
        lost = [_opponent(row, found) for row in against if row["reverses"]]
        rows.append([
            claim["claim"], _pill(claim["verdict"]),
            f"{held} of {len(against)}" + (f"; reversed by {', '.join(lost)}" if lost else ""),
            _closest(claim), number(config["seeds"]),
        ])  # fmt: skip
    head = ["claim", "verdict", "held against", "hardest opponent: difference, 95 % interval", "seeds"]
    note = (
        "A claim held if the 95 % interval of its difference excludes no difference against every opponent; it did not "
        "hold if one of k opponents does better, the interval at 100 - 5 / k % excluding no difference; else it is "
        "undecided. A positive difference, for speed a ratio above 1, speaks for the claim. These small models say "
        "nothing sure about large ones, and speeds are this machine's: train larger ones with claims.width, "
        "claims.layers and claims.budgets."
    )
    few = config["seeds"] < 5
    warning = f"Only {config['seeds']} seeds: the intervals are wide; five or more are usual." if few else None
    return tag(
        "section",
        tag("p", lead, class_="lead"),
        tag("p", warning, class_="note") if warning else None,
        table("Claims", head, rows, numeric=(4,), shown=len(rows)),
        tag("p", note, class_="note"),
        class_="reader",
    )


def _opponent(row: Found, found: Found) -> str:
    name = _name(row, _several(found))
    return name if row["ours"] == "transformer" else f"{name} without"


def _closest(claim: Found) -> str:
    """Opponent with the lowest bound."""
    known = [row for row in claim["against"] if row["difference"] is not None]
    if not known:
        return "no meter measured the energy" if claim["id"] == "energy" else UNKNOWN
    hardest = min(known, key=lambda row: row["difference"]["low"])
    return f"{NAMES[hardest['architecture']]}: {_with_interval(hardest['difference'], _writer(claim))} {claim['unit']}"


def _reviewer(found: Found) -> Html:
    """Tables, figures, method and all seeds."""
    parts = [
        _differences(found), _models(found), _figures(found), _curves(found), _positions(found), _recall(found),
        _method(found), _seeds(found),
    ]  # fmt: skip
    return tag("section", tag("h2", "For the reviewer"), [part for part in parts if part is not None], class_="reader")


def _differences(found: Found) -> Html:
    """Interval of each claim against each opponent."""
    several, blocks = _several(found), []
    for claim in found["claims"]:
        write, rows = _writer(claim), []
        bounds = [row["difference"][end] for row in claim["against"] if row["difference"] for end in ("low", "high")]
        scale = (min([*bounds, claim["neutral"]]), max([*bounds, claim["neutral"]]))
        for row in claim["against"]:
            name, about = _opponent(row, found), row["difference"]
            if row["ours"] != "transformer":
                name = _name({**row, "architecture": row["ours"]}, several)
            drawn: Html | str = ""
            if about is not None:
                label = f"{name}: {_with_interval(about, write)}"
                points = (about["low"], about["mean"], about["high"])
                hit = row["verdict"] == NOT_HELD
                drawn = interval_about(points, scale, claim["neutral"], label, hit=hit, mark="span s-f")
            rows.append([name, _pill(row["verdict"]), _with_interval(about, write), drawn])
        title = f"{claim['claim']} Difference: {claim['unit']}; right of the upright line it speaks for the claim"
        head = ["model", "verdict", "mean, 95 % interval", "drawn"]
        blocks.append(table(title, head, rows, numeric=(2,), shown=len(rows)))  # unbroken beside the figure
    return tag("section", tag("h3", "Each claim against each opponent"), blocks)


def _models(found: Found) -> Html:
    own = _transformer(found)
    rows = [
        [_name(row, _several(found)), number(row["width"]), number(row["parameters"]),
         f"{row['parameters'] / own['parameters']:.3f}", number(row["flops"]), f"{row['flops'] / own['flops']:.3f}",
         f"{row['learning_rate']:g}"]
        for row in found["models"]
    ]  # fmt: skip
    head = ["model", "width", "parameters", "to Transformer", "FLOPs a token", "to Transformer", "learning rate"]
    return tag("section", tag("h3", "Models"), table("Sizes", head, rows, numeric=range(1, 7), shown=len(rows)))


def _figures(found: Found) -> Html:
    rows = [
        [_name(row, _several(found)), number(row["budget"]), _with_interval(row["loss"], _short),
         _with_interval(_within(row["tokens_per_second"])), _with_interval(_within(row["seconds"])),
         _with_interval(_within(row["joules"]), energy)]
        for row in found["figures"]
    ]  # fmt: skip
    head = ["model", "tokens", "loss, nats per token", "tokens a second", "seconds", "energy"]
    title = "Validation loss, speed, time and energy by budget; mean and 95 % interval over seeds"
    return tag("section", tag("h3", "Loss, speed and energy"), table(title, head, rows, numeric=(1,), shown=len(rows)))


def _drawn(found: Found, rows: Sequence[Found], points: Callable[[Found], list[tuple[float, float]]]) -> list[Curve]:
    """One curve of each architecture, of the first matching."""
    first = found["method"]["config"]["matching"][0]
    chosen = [row for row in rows if row.get("matching", first) == first]
    return [
        Curve(NAMES[row["architecture"]], points(row), STYLES[index % len(STYLES)], dots=True)
        for index, row in enumerate(chosen)
        if points(row)
    ]


def _curves(found: Found) -> Html:
    """Loss over tokens, time and energy."""
    matched = _MATCHED[found["method"]["config"]["matching"][0]]
    charts = []
    for axis, name in (("tokens", "tokens"), ("seconds", "seconds of training"), ("joules", "joules")):

        def points(row: Found, axis: str = axis) -> list[tuple[float, float]]:
            return [(at[axis], at["loss"]["mean"]) for at in row["points"] if at[axis] is not None][1:]

        curves = _drawn(found, found["curves"], points)
        if curves:
            charts.append(chart(f"Loss by {axis}", curves, name, "nats per token", _short))
    title = f"Learning curves of the largest budget, mean over seeds, models of {matched}"
    return tag("section", tag("h3", title), tag("div", charts, class_="charts"))


def _positions(found: Found) -> Html:
    places = [f"{at['from']} to {at['to'] - 1}" for at in found["positions"][0]["rows"]]

    def points(row: Found) -> list[tuple[float, float]]:
        return [(float(index), at["loss"]["mean"]) for index, at in enumerate(row["rows"])]

    drawn = chart(
        "Loss by position", _drawn(found, found["positions"], points), "position, each range twice the last",
        "nats per token", _short, ends=(places[0].split()[0], places[-1].split()[-1]),
    )  # fmt: skip
    rows = [
        [_name(row, _several(found)), place, _with_interval(at["loss"], _short)]
        for row in found["positions"]
        for place, at in zip(places, row["rows"], strict=True)
    ]
    gains = [[_name(row, _several(found)), _with_interval(row["gain"], _short)] for row in found["positions"]]
    whole = "Gain from context: loss of the first sixteenth of a row minus that of its second half"
    return tag(
        "section",
        tag("h3", "Loss by position in the context"),
        tag("div", drawn, class_="charts"),
        table(whole, ["model", "nats per token, 95 % interval"], gains, shown=len(gains)),
        fold("Loss of each range of positions", table("By position", ["model", "position", "loss"], rows, shown=99)),
    )


def _recall(found: Found) -> Html | None:
    if not found["recall"]:
        return None

    def points(row: Found) -> list[tuple[float, float]]:
        return [(math.log2(at["distance"]), at["recall"]["mean"]) for at in row["rows"]]

    distances = [row["distance"] for row in found["recall"][0]["rows"]]
    drawn = chart(
        "Recall by distance", _drawn(found, found["recall"], points), "distance in tokens, by its logarithm",
        "share recalled", _percent, ends=(number(distances[0]), number(distances[-1])),
    )  # fmt: skip
    rows = [
        [
            NAMES[row["architecture"]],
            number(at["distance"]),
            number(at["asked"]),
            _with_interval(_within(at["recall"], 1.0), _percent),
        ]
        for row in found["recall"]
        for at in row["rows"]
    ]
    laws = [
        [NAMES[row["architecture"]], _law(row["architecture"]), _with_interval(row["slope"], _points),
         f"{row['follows_law']} of {row['seeds']}"]
        for row in found["recall"]
    ]  # fmt: skip
    head = ["model", "expected", "points per doubling, 95 % interval", "seeds that follow"]
    return tag(
        "section",
        tag("h3", "Recall of a planted fact by distance"),
        tag("div", drawn, class_="charts"),
        table("Law of planted recall", head, laws, shown=len(laws)),
        fold("Recall at each distance", table("By distance", ["model", "tokens", "questions", "recalled"], rows,
                                              numeric=(1, 2), shown=99)),
    )  # fmt: skip


def _law(architecture: str) -> str:
    """The law of recall for an architecture, as `law_holds` tests it."""
    if not attends(architecture):
        return "falls with the distance"
    return f"at the longest above {'all' if architecture == 'transformer' else 'the same network'} without attention"


def _at_an_end(found: Found) -> str:
    """Note on models whose best rate is the lowest or highest tried."""
    rates = found["method"]["config"]["learning_rates"]
    chosen, notes = [row["learning_rate"] for row in found["models"]], []
    for end, words in ((max(rates), "highest"), (min(rates), "lowest")):
        if count := chosen.count(end):
            notes.append(f" The {words} rate is best for {count} of {len(chosen)} models; one beyond it may be better.")
    return "".join(notes)


def _method(found: Found) -> Html:
    config = found["method"]["config"]
    recall, rates = config["recall"], ", ".join(f"{rate:g}" for rate in config["learning_rates"])
    texts = [
        f"Every model is trained on the same rows of the run's token shards in the same order: {config['seeds']} "
        f"seeds, each with its own first weights and order; {config['batch_rows']} rows of {config['sequence_length']} "
        f"tokens a step; {config['optimizer']}, a linear schedule with a warm-up of a tenth, clipping at 1, fp32 on "
        f"the CPU. Each budget is a training of its own. A row is one stream for every model: neither attention nor "
        f"state ends at a document's end.",
        f"Rates: for each model the one of {rates} with the lowest validation loss at {config['budgets'][0]:,} tokens, "
        f"on a seed that no result uses.{_at_an_end(found)}"
        if len(config["learning_rates"]) > 1
        else f"Every model learns at the rate {rates}.",
        "Matched parameters count the tied embedding once. Matched FLOPs are those of forward and backward per token "
        "by the trainer's convention (6 N + 12 x width x tokens seen, PaLM's).",
        "Intervals are Student's at 95 % over the seeds; differences are paired within a seed. The loss at equal time "
        "or energy is the lowest that some budget's training had reached by then; the amount is what the faster of the "
        "two used at the largest budget. Times exclude evaluations.",
        f"Energy is the ledger's, of the whole node while a training ran, shared over its seconds; method: "
        f"{'; '.join(found['method']['meters'])}.",
    ]
    if recall["distances"]:
        texts.append(
            f"Recall: models of the first matching are trained from the start on stretches of the run's text with "
            f"{recall['slots']} planted facts a row (a slot and one of {recall['values']} values in one token), for "
            f"{recall['steps']} steps; loss on answers only. Distances in training reach {recall['distances'][-1]:,}, "
            f"as in the measurement. A guess among the values is right in {1 / recall['values']:.0%}."
        )
    return tag("section", tag("h3", "Method"), [tag("p", text) for text in texts])


def _seeds(found: Found) -> Html:
    several = _several(found)
    rows = [
        [_name(row, several), number(row["budget"]), number(row["seed"]), _short(row["loss"]),
         compact(row["tokens_per_second"]), compact(row["seconds"]), energy(row["joules"])]
        for row in found["seeds"]
    ]  # fmt: skip
    head = ["model", "tokens", "seed", "loss", "tokens a second", "seconds", "energy"]
    blocks = [table("Trainings", head, rows, numeric=range(1, 7), shown=len(rows))]
    if found["recall_seeds"]:
        distances = [str(row["distance"]) for row in found["recall_seeds"][0]["recall"]]
        planted = [
            [NAMES[row["architecture"]], number(row["seed"]),
             ", ".join(_percent(at["right"] / at["asked"]) for at in row["recall"])]
            for row in found["recall_seeds"]
        ]  # fmt: skip
        title = f"Recall at {', '.join(distances)} tokens"
        blocks.append(table(title, ["model", "seed", "recalled"], planted, numeric=(1,), shown=len(planted)))
    return fold("All seeds", *blocks)
