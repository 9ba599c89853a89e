"""Interpretation of texts as an HTML page and as terminal lines.

The page is in the report's style: one file without scripts or external resources. Texts and tokens are untrusted and
pass through its escaping. A map has a row for each query, from the top, and a column for each key, from the left; its
colour is the probability in eight levels. In a long text each cell stands for several tokens: the mean over its queries
of the sum over its keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from governance.reports.html.markup import (
    Child,
    Html,
    compact,
    digest,
    energy,
    fold,
    number,
    share,
    table,
    tag,
    visible,
)
from governance.reports.html.svg_figures import Curve, chart
from governance.reports.sections.page import runs_page

_LEVELS, _CELLS = 8, 48
_OPEN_MAPS = 24  # maps of a text that are open; those of more heads are folded by layer
_NAMED = 5  # heads and tokens that a terminal names
_STYLE = """
.tokens{line-height:2;overflow-wrap:anywhere;max-width:none;white-space:pre-wrap}
.tokens span{border-radius:.2rem;padding:.12rem .02rem;box-shadow:inset 0 0 0 1px var(--faint)}
.maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(8.5rem,45%),1fr));gap:.7rem 1rem;margin:.5rem 0}
.maps figcaption{font-size:.78rem;color:var(--soft);line-height:1.3;margin-top:.2rem}
.map{aspect-ratio:1;background:var(--card);border:1px solid var(--line);shape-rendering:crispEdges}
.maps figcaption b{color:var(--ink);font-weight:600}
.named{display:none}
@media (max-width:60rem){.many .named{display:inline}}@media (max-width:40rem){.mid .named{display:inline}}
code.token{white-space:pre-wrap;background:var(--faint);border-radius:.2rem;padding:0 .15rem}
@media print{.tokens span{print-color-adjust:exact;-webkit-print-color-adjust:exact}.map{break-inside:avoid}}
"""


def interpretation_page(values: Mapping[str, Any]) -> str:
    """The page of the figures that `assay interpret --json` prints."""
    facts = [
        ("checkpoint", digest(values["checkpoint"])), ("step", number(values["step"])),
        ("blocks", number(values["layers"])), ("attention heads of each", number(values["attention_heads"])),
        ("energy of these measurements", energy(values["energy"]["joules"])),
    ]  # fmt: skip
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts]
    body: list[Child] = [tag("dl", rows, class_="facts")]
    for place, text in enumerate(values["texts"], 1):
        body.append(_text(place, text))
    body.append(_induction(values["induction"]))
    if "head_pruning" in values:
        body.append(_pruning(values["head_pruning"]))
    foot = "Made by assay interpret; the page loads no external resources. Layers and heads count from 0."
    return runs_page("How a checkpoint reads texts", body, foot, _STYLE)


def _text(place: int, text: Mapping[str, Any]) -> Html:
    notes = [tag("p", f"Not measured: {note}.", class_="note") for note in text["not_measured"]]
    count = len(text["tokens"])
    title = tag("h2", f"Text {place}", tag("small", f"{count:,} token{'s' if count > 1 else ''}"))
    parts = [_attribution(text), _attention(text), _lens(text), _activations(text)]
    return tag("section", title, notes, parts, class_="reader")


def _token(one: Mapping[str, Any]) -> Html:
    return tag("code", tag("bdi", one["text"].replace("\n", "↵")), class_="token")


def _headed(name: str, value: int | str) -> list[Child]:
    """First cell of a row, named where the row becomes a block."""
    return [tag("span", f"{name} ", class_="named"), str(value)]


def _attribution(text: Mapping[str, Any]) -> Html:
    found, tokens = text["attribution"], text["tokens"]
    note: list[Child] = [
        "The likeliest next token is ", _token(found["target"]),
        f", log probability {found['log_probability']:.3f} nats. The colour is each token's contribution to it: ",
        tag("span", "blue", style=_shade(1.0)), " raises it, ", tag("span", "orange", style=_shade(-1.0)),
        " lowers it, each measure on its own scale.",
    ]  # fmt: skip
    names = ["gradient x input"]
    columns = [found["gradient_x_input"]]
    if found["integrated_gradients"] is not None:
        names.insert(0, "integrated gradients")
        columns.insert(0, found["integrated_gradients"])
        note.append(
            f" Integrated gradients start at {found['baseline_log_probability']:.3f} nats, where each token is the end "
            f"of a document; {found['steps']} steps; the contributions miss the difference by "
            f"{compact(found['completeness_error'])} nats."
        )
    drawn = [part for name, column in zip(names, columns, strict=True) for part in _coloured(name, tokens, column)]
    rows = [
        [_headed("place", place), _token(token), *(f"{column[place]:+.3g}" for column in columns)]
        for place, token in enumerate(tokens)
    ]
    listed = table("Contributions, nats", ["place", "token", *names], rows, numeric=range(2, 2 + len(names)))
    return tag("section", tag("h3", "Attribution"), tag("p", note, class_="note"), drawn, listed)


def _coloured(name: str, tokens: Sequence[Mapping[str, Any]], values: Sequence[float]) -> list[Html]:
    most = max(map(abs, values)) or 1.0
    spans = [
        tag("span", tag("bdi", one["text"]), style=_shade(value / most), title=f"{value:+.3g} nats")
        for one, value in zip(tokens, values, strict=True)
    ]
    return [tag("h4", name[0].upper() + name[1:]), tag("p", spans, class_="tokens")]


def _shade(value: float) -> str:
    """Background of a contribution from -1 to 1."""
    colour = "--a" if value >= 0 else "--b"
    return f"color:var(--ink);background:color-mix(in srgb,var({colour}) {round(60 * abs(value))}%,transparent)"


def _attention(text: Mapping[str, Any]) -> Html:
    heads, patterns = text["heads"], text["patterns"]
    parts: list[Child] = [tag("h3", "Attention")]
    if patterns is not None and len(text["tokens"]) > 1:
        group = -(-len(text["tokens"]) // _CELLS)
        cells = f" A cell stands for {group} tokens a side." if group > 1 else ""
        note = f"One map for each head: a row for each query from the top, a column for each key from the left.{cells}"
        parts.append(tag("p", note, class_="note"))
        for layer, mine in groupby(heads, key=lambda head: head["layer"]):
            drawn = tag("div", [_map(head, patterns[layer][head["head"]], group) for head in mine], class_="maps")
            parts.append(fold(f"Maps of layer {layer}", drawn, open_=len(heads) <= _OPEN_MAPS))
    rows = [
        [_headed("head", f"{head['layer']}.{head['head']}"), f"{head['entropy']:.3f}", _percent(head["entropy_share"]),
         *(_percent(head[name]) for name in ("to_first", "to_previous", "to_itself"))]
        for head in heads
    ]  # fmt: skip
    note = (
        "Entropy is the mean over queries; its share is that of equal attention over all keys that the query may see. "
        "The last columns are mean probabilities."
    )
    names = ["layer.head", "entropy, nats", "share of most", "first token", "token before", "itself"]
    parts += [table("Attention heads", names, rows, numeric=range(1, 6)), tag("p", note, class_="note")]
    return tag("section", parts)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _map(head: Mapping[str, Any], pattern: Sequence[Sequence[float]], group: int) -> Html:
    """Map of one head, from its rows up to the query."""
    size = -(-len(pattern) // group)
    cells = [[0.0] * size for _ in range(size)]
    for query, row in enumerate(pattern):
        queries = min(group, len(pattern) - query // group * group)
        for key, value in enumerate(row):
            cells[query // group][key // group] += value / queries
    paths: dict[int, list[str]] = {}
    for place, row in enumerate(cells):
        at = 0
        for level, run in groupby(min(_LEVELS, round(_LEVELS * value)) for value in row):
            width = len(list(run))
            if level:
                paths.setdefault(level, []).append(f"M{at} {place}h{width}v1h-{width}z")
            at += width
    drawn = [
        tag("path", d="".join(parts), class_="f-a", opacity=f"{level / _LEVELS:g}") for level, parts in paths.items()
    ]
    name = f"{head['layer']}.{head['head']}"
    label = f"attention of head {name}, entropy {head['entropy']:.2f} nats"
    picture = tag("svg", tag("title", label), drawn, viewBox=f"0 0 {size} {size}", role="img", aria_label=label,
                  preserveAspectRatio="none", class_="map")  # fmt: skip
    return tag("figure", picture, tag("figcaption", tag("b", name), f" entropy {head['entropy']:.2f}"))


def _lens(text: Mapping[str, Any]) -> Html:
    layers, positions = text["lens"]["layers"], text["lens"]["positions"]
    parts: list[Child] = [
        tag("h3", "Logit lens"),
        tag("p", "The output projection, read after each number of blocks; the last is the output.", class_="note"),
    ]  # fmt: skip
    curves = [[(float(row["blocks"]), row[name]) for row in layers] for name in ("nats", "divergence")]
    if len(text["tokens"]) > 1:
        drawn = [Curve("the text's next tokens", curves[0], "a", True)]
        parts.append(chart("Cross entropy of the text's next tokens", drawn, "blocks", "nats per token"))
    drawn = [Curve("divergence", curves[1], "b", True)]
    parts.append(chart("Divergence from the model's output", drawn, "blocks", "nats"))
    rows: list[list[Child]] = [
        [str(blocks), [[_token(one), f" {share(one['probability'])} "] for one in likeliest]]
        for blocks, likeliest in enumerate(positions[-1]["likeliest"])
    ]
    parts.append(table("Next token after the text", ["blocks", "likeliest tokens"], rows, shown=len(rows)))
    rows = []
    for place, position in enumerate(positions):
        best = position["likeliest"][-1][0]
        rows.append(
            [
                _headed("place", place),
                _token(text["tokens"][place]),
                _token(best),
                share(best["probability"]),
                str(position["settled"]),
            ]
        )
    names = ["place", "token", "likeliest next", "probability", "settled after blocks"]
    parts.append(table("Each position", names, rows, numeric=(3, 4)))
    return tag("section", parts)


def _activations(text: Mapping[str, Any]) -> Html:
    rows, experts = [], []
    for row in text["activations"]:
        stream, inner = row["residual"], row.get("inner")
        rows.append(
            [_headed("after blocks:", row["blocks"]), compact(stream["rms"]), compact(stream["largest"]),
             str(stream["largest_channel"]),
             compact(stream["kurtosis"]), *(compact(row[name]["rms"]) if name in row else "–"
                                            for name in ("attention", "feed_forward")),
             share(inner["zeros"]) if inner else "–"]
        )  # fmt: skip
        if row.get("experts"):
            experts.append([str(row["blocks"] - 1), ", ".join(share(one) for one in row["experts"])])
    names = ["blocks", "rms", "largest", "its channel", "kurtosis", "attention rms", "feed-forward rms", "zeros inside"]
    note = (
        "The residual stream after each number of blocks, and what the last of them wrote. Kurtosis is 3 for a normal "
        "distribution."
    )
    parts: list[Child] = [
        tag("h3", "Activations"), table("Residual stream", names, rows, numeric=range(1, 8)),
        tag("p", note, class_="note"),
    ]  # fmt: skip
    if experts:
        parts.append(table("Share of the choices of each expert", ["layer", "experts from 0 on"], experts))
    return tag("section", parts)


def _induction(found: Mapping[str, Any] | None) -> Html:
    title = tag("h2", "Induction heads")
    if found is None:
        why = "Not measured: two tokens cannot repeat within the model's context and windows."
        return tag("section", title, tag("p", why, class_="note"), class_="reader")
    note = (
        f"{found['repeated_tokens']} random tokens occur twice. The score of a head is the mean probability with "
        f"which a token of the second half sees the one that followed its first occurrence. The model needs "
        f"{found['nats_first']:.3f} nats per token in the first half and {found['nats_second']:.3f} in the second."
    )
    rows = [[f"{layer}.{head}", f"{score:.4f}"] for score, layer, head in _ranked(found["scores"])]
    inner = table("Induction scores", ["layer.head", "score"], rows, numeric=(1,))
    return tag("section", title, tag("p", note, class_="note"), inner, class_="reader")


def _ranked(scores: Sequence[Sequence[float]]) -> list[tuple[float, int, int]]:
    """(score, layer, head), the highest first."""
    ranked = [(score, layer, head) for layer, row in enumerate(scores) for head, score in enumerate(row)]
    return sorted(ranked, key=lambda one: (-one[0], one[1], one[2]))


def _pruning(found: Mapping[str, Any]) -> Html:
    note = (
        f"Heads are removed from the least important on, without training after it. Importance, of "
        f"{found['rows_of_importance']:,} validation rows, is the mean size of the loss's gradient for a factor of the "
        f"head's output; the cost is measured on {found['rows_of_cost']:,} others, with its standard error over rows."
    )
    curve = [(float(row["removed"]), row["loss"]) for row in found["rows"]]
    ranks = {tuple(place): rank for rank, place in enumerate(found["order"], 1)}
    heads = [
        [f"{layer}.{head}", f"{score:.5f}", str(ranks[layer, head])]
        for score, layer, head in _ranked(found["importance"])
    ]
    parts = [
        tag("h2", "Head pruning"), tag("p", note, class_="note"),
        chart("Validation loss without heads", [Curve("loss", curve, "a", True)], "heads removed", "nats per token"),
        table("Cost of removed heads", ["heads removed", "loss", "cost", "standard error"],
              [[_headed("heads removed:", row[0]), *row[1:]] for row in _cost_rows(found)],
              numeric=(1, 2, 3), shown=len(found["rows"])),
        table("Importance of heads", ["layer.head", "importance, nats per token", "removed as number"], heads,
              numeric=(1, 2)),
    ]  # fmt: skip
    return tag("section", parts, class_="reader")


def _cost_rows(found: Mapping[str, Any]) -> list[list[str]]:
    return [
        [str(row["removed"]), f"{row['loss']:.4f}", f"{row['cost']:+.4f}",
         "unknown" if row["cost_stderr"] is None else f"{row['cost_stderr']:.4f}"]
        for row in found["rows"]
    ]  # fmt: skip


def interpretation_lines(values: Mapping[str, Any]) -> list[str]:
    """The main figures, for a terminal."""
    lines = [f"checkpoint {values['checkpoint'][:16]} at step {values['step']:,}"]
    for place, text in enumerate(values["texts"], 1):
        lines += ["", *_text_lines(place, text)]
    found = values["induction"]
    if found is not None:
        best = [f"{layer}.{head} {score:.3f}" for score, layer, head in _ranked(found["scores"])[:_NAMED]]
        lines += ["", f"induction scores (layer.head): {', '.join(best)}"]
    if "head_pruning" in values:
        lines += ["", "heads removed      loss      cost  standard error"]
        for removed, loss, cost, error in _cost_rows(values["head_pruning"]):
            lines.append(f"{removed:>13}{loss:>10}{cost:>10}{error:>16}")
    return [visible(line) for line in lines]


def _text_lines(place: int, text: Mapping[str, Any]) -> list[str]:
    found, tokens = text["attribution"], text["tokens"]
    whole = found["integrated_gradients"]
    parts = found["gradient_x_input"] if whole is None else whole
    order = sorted(range(len(tokens)), key=lambda at: -abs(parts[at]))[:_NAMED]
    named = ", ".join(f"{tokens[at]['text']!r} {parts[at]:+.3f}" for at in order)
    method = (
        "gradient x input" if whole is None else f"integrated gradients, error {compact(found['completeness_error'])}"
    )
    settled = text["lens"]["positions"][-1]["settled"]
    sharp = sorted(text["heads"], key=lambda head: head["entropy"])[:_NAMED]
    heads = ", ".join(f"{head['layer']}.{head['head']} {head['entropy']:.3f}" for head in sharp)
    return [
        f"text {place}: {len(tokens)} tokens; likeliest next {found['target']['text']!r}, "
        f"{found['log_probability']:.3f} nats, settled after {settled} of {len(text['lens']['layers']) - 1} blocks",
        f"  contributions in nats ({method}): {named}",
        f"  heads of the lowest entropy, nats (layer.head): {heads}",
        *(f"  not measured: {note}" for note in text["not_measured"]),
    ]
