"""Identity of a run, and tables that its mirrors show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from governance.manifest import Input
from pretrain.config.training import TrainRecipe

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class MirrorTable:
    """A table that a mirror shows; None is unknown."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


MirrorTables = Callable[[], Mapping[str, MirrorTable | float | None]]
"""Tables and figures by "section/name", as they are at the call."""


@dataclass(frozen=True)
class RunIdentity:
    """Identity of the run, for the mirrors."""

    recipe: TrainRecipe
    key: str
    """Key of the training stage; names the run."""
    inputs: tuple[Input, ...] = ()
    """Token shards, parent checkpoint, and the verdict that let the corpus through."""
    head: Callable[[], str] = lambda: ""
    """The journal's head: a mirror keeps it out of reach of anyone who could rewrite the journal."""
    tables: MirrorTables = dict
    """Shown next to the charts; called in a mirror's thread when an attempt starts and when it ends."""
