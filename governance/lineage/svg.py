"""Lineage as a standalone SVG.

Layers are longest ways from a source; within a layer, boxes are near those that they are joined to (barycentres), and a
line that passes a layer has a place of its own there, so that no line runs through a box (Sugiyama, Tagawa and Toda,
1981). Many source files of one source are drawn as one box. A line that longer ways imply is left out: an audit reads
every stage, and the picture would be all lines; `assay governance trace` and the PROV file have them all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from governance.lineage.lineage_graph import Graph, Node
from governance.manifest import SOURCES

_FEW_FILES = 3  # files of a source that are drawn one by one
_WIDTH, _HEIGHT, _GAP, _LAYER, _LANE, _MARGIN = 216, 64, 28, 112, 20, 32
_SWEEPS = 8
_PAPER = {
    "source": "#7a5c00", "made": "#1f5f8b", "verdict": "#2e6b34", "gone": "#777777", "child": "#7b3f78",
    "ground": "#ffffff", "line": "#9aa4ad", "ink": "#333", "soft": "#666",
}  # fmt: skip
_PAGE = {
    "source": "var(--e)", "made": "var(--a)", "verdict": "var(--good)", "gone": "var(--f)", "child": "var(--d)",
    "ground": "var(--card)", "line": "var(--f)", "ink": "var(--ink)", "soft": "var(--soft)",
}  # fmt: skip
"""The colours of the report's style sheet, light and dark."""
_CHILDREN = ("export", "evaluation", "interpretation", "model-signature")


@dataclass(frozen=True)
class Box:
    """One box: three lines of text and a kind."""

    title: str
    lines: tuple[str, str]
    kind: str


@dataclass
class _GraphLayout:
    """Layers of names from the top.

    A name is a box, or a place where a line passes.
    """

    layers: list[list[str]]
    x: dict[str, float]


def draw(graph: Graph, target: Node) -> str:
    """The SVG of an artifact and all that it was made from."""
    chosen = {target.key: target} | {node.key: node for _, node in graph.ancestors(target)}
    boxes, edges = _boxes(graph, chosen)
    return draw_boxes(boxes, edges, f"Lineage of {target.stage} {target.digest[:16]}")


def draw_boxes(boxes: Mapping[str, Box], edges: set[tuple[str, str]], title: str, *, inline: bool = False) -> str:
    """SVG of named boxes and (parent, child) edges.

    With `inline`, part of the report's page: in its colours, without a title above the boxes.
    """
    edges = _reduced(edges)
    layout = _lay_out(_depths(boxes, edges), edges, boxes)
    return _render(boxes, edges, layout, title, inline)


def _boxes(graph: Graph, chosen: Mapping[tuple[str, str], Node]) -> tuple[dict[str, Box], set[tuple[str, str]]]:
    """The boxes by name, and the edges (parent, child) between them.

    Many files of one source are one box.
    """
    members: dict[tuple[str, frozenset[tuple[str, str]]], list[Node]] = defaultdict(list)
    for node in chosen.values():
        if node.stage in SOURCES:
            users = frozenset(child for child in graph.children.get(node.key, []) if child in chosen)
            members[node.path.partition("/")[0], users].append(node)
    name_of = {node.key: f"{node.path}@{node.digest}" for node in chosen.values()}
    boxes = {name_of[node.key]: _box(node) for node in chosen.values()}
    for (source, _), nodes in members.items():
        if len(nodes) > _FEW_FILES:
            for node in nodes:
                del boxes[name_of[node.key]]
                name_of[node.key] = f"{source}@{len(boxes)}"
            example = min(node.path for node in nodes)
            boxes[name_of[nodes[0].key]] = Box(f"{len(nodes)} files", (source, example.partition("/")[2]), "source")
            for node in nodes:
                name_of[node.key] = name_of[nodes[0].key]
    edges = {
        (name_of[parent], name_of[child])
        for child in chosen
        for parent in graph.parents.get(child, ())
        if parent in chosen
    }
    return boxes, edges


def _box(node: Node) -> Box:
    stats = node.manifest.stats if node.manifest is not None else {}
    counts = {
        "documents": stats.get("documents_kept"),
        "tokens": stats.get("train_tokens", stats.get("tokens")),
        "step": node.config.get("step"),
    }
    listed = ", ".join(f"{value:,} {name}" if name != "step" else f"step {value:,}"
                     for name, value in counts.items() if isinstance(value, int))  # fmt: skip
    if node.stage in SOURCES:
        return Box(node.stage, (node.path, node.digest[:16]), "source")
    if node.stage == "verdict":
        return Box(f"verdict {node.facts.get('verdict', '')}", (node.path, node.digest[:16]), "verdict")
    if node.stage in _CHILDREN:
        return Box(node.stage, (node.path, node.digest[:16]), "child")
    version = node.manifest.version if node.manifest is not None else node.facts.get("version", "unknown")
    return Box(
        node.stage, (node.gone or listed or f"version {version}", node.digest[:16]), "gone" if node.gone else "made"
    )


def _reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The edges that no longer way implies."""
    below: dict[str, set[str]] = defaultdict(set)
    for parent, child in edges:
        below[parent].add(child)
    reach: dict[str, set[str]] = {}

    def reached(name: str) -> set[str]:
        if name not in reach:
            reach[name] = set().union(*({child} | reached(child) for child in below.get(name, ())))
        return reach[name]

    return {
        (parent, child)
        for parent, child in edges
        if not any(child in reached(other) for other in below[parent] if other != child)
    }


def _depths(boxes: Iterable[str], edges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The longest way from a source to each box.

    A source is right above the first box that reads it.
    """
    above: dict[str, list[str]] = defaultdict(list)
    below: dict[str, list[str]] = defaultdict(list)
    for parent, child in edges:
        above[child].append(parent)
        below[parent].append(child)
    depth: dict[str, int] = {}

    def deep(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((deep(parent) for parent in above[name]), default=-1)
        return depth[name]

    for name in boxes:
        deep(name)
    for name in list(depth):
        if not above[name] and below[name]:
            depth[name] = min(depth[child] for child in below[name]) - 1
    least = min(depth.values())
    return {name: value - least for name, value in depth.items()}


def _lay_out(depth: Mapping[str, int], edges: Iterable[tuple[str, str]], boxes: Mapping[str, Box]) -> _GraphLayout:
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in sorted(depth, key=lambda name: (boxes[name].title, name)):
        layers[depth[name]].append(name)
    joined: dict[str, list[str]] = defaultdict(list)  # names in neighbouring layers
    for parent, child in sorted(edges):
        lanes = {number: _lane(parent, child, number) for number in range(depth[parent] + 1, depth[child])}
        for number, lane in lanes.items():
            layers[number].append(lane)
        for upper, lower in pairwise([parent, *lanes.values(), child]):
            joined[upper].append(lower)
            joined[lower].append(upper)
    layout = _GraphLayout(layers, {})
    for layer in layers:
        _spread(layout, layer, boxes, {name: float(index) for index, name in enumerate(layer)})
    for sweep in range(_SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wish = {
                name: sum(layout.x[other] for other in joined[name]) / len(joined[name])
                if joined[name]
                else layout.x[name]
                for name in layer
            }
            layer.sort(key=lambda name: wish[name])
            _spread(layout, layer, boxes, wish)
    return layout


def _lane(parent: str, child: str, layer: int) -> str:
    return f"{parent}\n{child}\n{layer}"


def _width(name: str, boxes: Mapping[str, Box]) -> int:
    return _WIDTH if name in boxes else _LANE


def _spread(layout: _GraphLayout, layer: Sequence[str], boxes: Mapping[str, Box], wish: Mapping[str, float]) -> None:
    """Place a layer's boxes near their preferred positions without overlap."""
    placed: list[list[float]] = []  # runs of touching boxes: [sum of (wish - offset), count, width so far]
    runs: list[list[str]] = []
    for name in layer:
        runs.append([name])
        placed.append([wish[name] - _width(name, boxes) / 2, 1, _width(name, boxes)])
        while len(runs) > 1 and _left(placed[-2]) + placed[-2][2] + _GAP > _left(placed[-1]):
            total, count, width = placed.pop()
            shift = placed[-1][2] + _GAP
            placed[-1] = [placed[-1][0] + total - count * shift, placed[-1][1] + count, shift + width]
            last = runs.pop()
            runs[-1] += last
    for run, place in zip(runs, placed, strict=True):
        left = _left(place)
        for name in run:
            layout.x[name] = left + _width(name, boxes) / 2
            left += _width(name, boxes) + _GAP


def _left(run: Sequence[float]) -> float:
    return run[0] / run[1]


def _render(
    boxes: Mapping[str, Box], edges: Iterable[tuple[str, str]], layout: _GraphLayout, title: str, inline: bool
) -> str:
    level = {name: number for number, layer in enumerate(layout.layers) for name in layer}
    margin, above = (2, 0) if inline else (_MARGIN, 40)
    left = min(layout.x[name] - _width(name, boxes) / 2 for name in layout.x) - margin
    right = max(layout.x[name] + _width(name, boxes) / 2 for name in layout.x) + margin
    height = len(layout.layers) * _LAYER - (_LAYER - _HEIGHT) + 2 * margin + above
    top, colours = margin + above, _PAGE if inline else _PAPER
    size = f'viewBox="{left:.0f} 0 {right - left:.0f} {height}" width="{right - left:.0f}" height="{height}"'
    label = escape(title)
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="system-ui, sans-serif">',
        f"<title>{label}</title>",
        f'<rect x="{left:.0f}" y="0" width="{right - left:.0f}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left + _MARGIN:.0f}" y="{_MARGIN + 8}" font-size="17" font-weight="600" fill="#222">'
        f"{escape(_cut(title, right - left - 2 * _MARGIN, 9.2))}</text>",
    ]
    if inline:
        head = [f'<svg class="graph" {size} role="img" aria-label="{label}">', f"<title>{label}</title>"]
    lines = [*head, f'<g fill="none" stroke="{colours["line"]}" stroke-width="1.6">']
    lines += [_line(edge, level, layout, top) for edge in sorted(edges)]
    lines.append("</g>")
    for name, box in boxes.items():
        lines += _drawn(box, layout.x[name] - _WIDTH / 2, top + level[name] * _LAYER, colours)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _line(edge: tuple[str, str], level: Mapping[str, int], layout: _GraphLayout, top: int) -> str:
    """An edge as one path through its places in the layers between."""
    parent, child = edge
    lanes = [_lane(parent, child, layer) for layer in range(level[parent] + 1, level[child])]
    x, y = layout.x[parent], top + level[parent] * _LAYER + _HEIGHT
    path = [f"M{x:.1f} {y}"]
    for name in [*lanes, child]:
        into = top + level[name] * _LAYER
        middle = (y + into) / 2
        path.append(f"C{x:.1f} {middle:.1f} {layout.x[name]:.1f} {middle:.1f} {layout.x[name]:.1f} {into}")
        x, y = layout.x[name], into
        if name in lanes:
            y = into + _HEIGHT
            path.append(f"V{y}")
    return f'<path d="{" ".join(path)}"/>'


def _drawn(box: Box, x: float, y: float, colours: Mapping[str, str]) -> list[str]:
    colour = colours[box.kind]
    dash = ' stroke-dasharray="5 4"' if box.kind == "gone" else ""
    first, second = box.lines
    texts = [
        (box.title, 22, 15, 600, colour),
        (first, 40, 12, 400, colours["ink"]),
        (second, 56, 11, 400, colours["soft"]),
    ]
    return [
        f"<g><title>{escape(' '.join((box.title, *box.lines)))}</title>",
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{_WIDTH}" height="{_HEIGHT}" rx="7" fill="{colours["ground"]}" '
        f'stroke="{colour}" stroke-width="1.6"{dash}/>',
        f'<rect x="{x:.1f}" y="{y + 8:.1f}" width="4" height="{_HEIGHT - 16}" fill="{colour}"/>',
        *(
            f'<text x="{x + 14:.1f}" y="{y + down:.1f}" font-size="{size}" font-weight="{weight}" fill="{ink}">'
            f"{escape(_cut(text, _WIDTH - 26, size * 0.56))}</text>"
            for text, down, size, weight, ink in texts
            if text
        ),
        "</g>",
    ]


def _cut(text: str, width: float, letter: float) -> str:
    """A text that fits.

    An ellipsis replaces its middle, since the ends of paths are the most informative.
    """
    most = max(4, int(width / letter))
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most - most // 2) :]}"
