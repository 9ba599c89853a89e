"""Lineage section: drawing and inputs of each artifact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from governance.lineage.svg import Box, draw_boxes
from governance.manifest import SOURCES
from governance.reports.facts.citations import cite_each
from governance.reports.html.markup import UNKNOWN, Html, digest, fold, foreign, join, number, size, tag, visible

_INPUTS_SHOWN = 25
_SOURCES_SHOWN = 6  # boxes of sources in the drawing; the rest are one box


def lineage(facts: Mapping[str, Any]) -> Html:
    """Strip from sources to last checkpoint; graph and list of artifacts folded."""
    rows = facts["lineage"]
    citation = cite_each(facts, "/lineage", len(rows))
    return join([
        _strip(facts, citation),
        fold(f"Lineage graph and all {len(rows)} artifacts with their inputs", _drawing(facts),
             tag("h4", "Artifacts and their inputs", citation), tag("ol", _in_words(facts), class_="rail")),
    ])  # fmt: skip


def _strip(facts: Mapping[str, Any], citation: Html) -> Html | None:
    """Sources, stages and last checkpoint as a strip."""
    boxes, _ = _boxes(facts)
    if not boxes:
        return None
    chips = [
        tag("li", tag("b", foreign(box.title)), tag("span", foreign(box.lines[0])), class_=box.kind)
        for kind in ("source", "made", "child")
        for box in boxes.values()
        if box.kind == kind
    ]
    title = tag("figcaption", tag("b", "From the sources to the last checkpoint"), citation)
    return tag("figure", title, tag("ol", chips, class_="strip"), class_="chart")


def _in_words(facts: Mapping[str, Any]) -> Iterator[Html]:
    for row in facts["lineage"]:
        shown = [
            tag("li", "from ", item["stage"], " ", digest(item["digest"]), " ", foreign(item["path"]))
            for item in row["inputs"][:_INPUTS_SHOWN]
        ]
        rest = len(row["inputs"]) - len(shown)
        if rest > 0:
            shown.append(tag("li", f"and {rest:,} more inputs, see the manifest"))
        about = f"{row['files']:,} files, {size(row['bytes'])}, finished {row['finished'] or UNKNOWN}"
        made = tag("li", f"{row['path']}: {about}")
        yield tag("li", tag("b", row["stage"]), digest(row["digest"]), tag("ul", [made, *shown]))
    last = (facts["training"] or {}).get("stats", {}).get("checkpoint")
    if last:
        path = tag("ul", tag("li", str(last.get("path"))))
        yield tag("li", tag("b", "last checkpoint"), digest(str(last.get("digest", ""))), path)


def _drawing(facts: Mapping[str, Any]) -> Html | None:
    boxes, edges = _boxes(facts)
    if not boxes:
        return None
    label = f"Lineage: {len(boxes)} boxes, source files at the top; the list below has the same content"
    drawn = Html(draw_boxes(boxes, edges, label, inline=True))
    box = tag("div", drawn, class_="scroll", tabindex="0", role="region", aria_label="Lineage as a drawing")
    return tag(
        "figure",
        tag("figcaption", tag("b", "Lineage graph"), " ", tag("span", "transitive edges omitted", class_="unit")),
        box,
    )


def _boxes(facts: Mapping[str, Any]) -> tuple[dict[str, Box], set[tuple[str, str]]]:
    """Boxes and edges of the lineage drawing."""
    counts = {row["stage"]: f"{row['documents_kept']:,} documents" for row in facts["funnel"]}
    tokens = facts["summary"]["train_tokens"]
    if tokens is not None:
        counts["encode"] = f"{tokens:,} tokens"
    if facts["training"]:
        counts["train"] = f"{number(facts['summary']['steps'])} steps"
    boxes: dict[str, Box] = {}
    edges: set[tuple[str, str]] = set()
    names = {(row["path"], row["digest"]): f"made {row['stage']} {row['path']}" for row in facts["lineage"]}
    for row in facts["lineage"]:
        name = names[row["path"], row["digest"]]
        size_text = counts.get(row["stage"], f"{row['files']:,} files, {size(row['bytes'])}")
        boxes[name] = Box(row["stage"], (size_text, row["digest"][:16]), "made")
        for source, (text, files) in _sources(row).items():
            boxes[source] = Box(text, (f"{files:,} files" if files > 1 else "1 file", ""), "source")
            edges.add((source, name))
        edges |= {
            (names[item["path"], item["digest"]], name)
            for item in row["inputs"]
            if (item["path"], item["digest"]) in names
        }
    last = (facts["training"] or {}).get("stats", {}).get("checkpoint")
    for row in facts["lineage"]:
        if last and row["stage"] == "train":
            boxes["last"] = Box("last checkpoint", (str(last.get("path")), str(last.get("digest", ""))[:16]), "child")
            edges.add((names[row["path"], row["digest"]], "last"))
    return boxes, edges


def _sources(row: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Source files by source: box name -> (text, number of files).

    A model's or rules' files of `redact` lie in folders of their own names, and are no sources.
    """
    files: dict[str, int] = defaultdict(int)
    for item in row["inputs"]:
        if item["stage"] in SOURCES:
            own = "models and rules of redact" if row["stage"] == "redact" else str(item["path"]).partition("/")[0]
            files[visible(own)] += 1
    ordered = sorted(files, key=lambda name: (-files[name], name))
    found = {f"source {name}": (name, files[name]) for name in ordered[:_SOURCES_SHOWN]}
    rest = ordered[_SOURCES_SHOWN:]
    if rest:
        found[f"source and {len(rest)} more"] = (f"{len(rest)} more sources", sum(files[name] for name in rest))
    return found
