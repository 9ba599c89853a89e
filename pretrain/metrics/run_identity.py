"""Identity of a run, and tables that its mirrors show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from governance.manifest import Input
from pretrain.config.training import TrainRecipe

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Table:
    """A table that a mirror shows; None is unknown."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


Shown = Callable[[], Mapping[str, Table | float | None]]
"""Tables and figures by "section/name", as they are when it is called."""


@dataclass(frozen=True)
class About:
    """Identity of the run, for the mirrors."""

    recipe: TrainRecipe
    key: str
    """Of the stage; names the run."""
    inputs: tuple[Input, ...] = ()
    """What it is trained on, and what let it through."""
    head: Callable[[], str] = lambda: ""
    """The journal's head: a mirror keeps it where whoever could rewrite the journal may have no hand."""
    shown: Shown = dict
    """Stands beside the charts; called in a mirror's thread, when an attempt starts and when it ends."""
