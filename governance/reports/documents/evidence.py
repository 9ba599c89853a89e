"""Evidence for documents: facts of report.json by path, and manifests.

A document has no figures of its own: it names a path into report.json (`summary.train_tokens`) and a format. Where the
path has no value, the entry asks a person to complete it; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.errors import MissingInput
from governance.manifest import SOURCES, Input, Manifest
from governance.reports.html.markup import number

TO_COMPLETE = "to be completed by a person"

KWH = 3.6e6
"""Joules of a kilowatt-hour."""

_UNBOUNDED = "no known bound"


@dataclass(frozen=True)
class Field:
    """One item of a form."""

    name: str
    text: str | None
    """None: no evidence, a person completes it."""
    source: str = ""
    """Origin: paths into report.json."""

    @property
    def entry(self) -> str:
        """Text of the form's entry."""
        return TO_COMPLETE if self.text is None else self.text


@dataclass(frozen=True)
class Evidence:
    """Everything that documents may use."""

    found: Mapping[str, Any]
    """Content of report.json."""
    artifacts: Mapping[str, Manifest]
    """Stage -> manifest, which lists files and digests."""
    root: Path

    def at(self, path: str) -> Any:
        """Value at a dotted path; None if it ends early."""
        value: Any = self.found
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def field(self, name: str, path: str, write: Callable[[Any], str] = number) -> Field:
        """Item for a path."""
        value = self.at(path)
        return Field(name, None, "") if value is None else Field(name, write(value), path)

    def figure(self, name: str, figure: str) -> Field:
        """Item for a figure of the footprint."""
        text = self.footprint(figure)
        return Field(name, text, f"energy.footprint.figures.{figure}" if text is not None else "")

    def footprint(self, figure: str) -> str | None:
        """A figure of the footprint as text; None where unknown."""
        return figure_text(self.at(f"energy.footprint.figures.{figure}"), self.at("energy.footprint.factors"))

    @property
    def model(self) -> Manifest | None:
        """Finished training of the model; None without one."""
        return self.artifacts.get("train")

    @property
    def parents(self) -> list[Input]:
        """Models from which the training began or learned, folders of weights included."""
        made_from = self.model.made_from if self.model is not None else ()
        return [item for item in made_from if item.stage in ("train", "checkpoint", *SOURCES)]

    @property
    def corpus(self) -> Manifest:
        """The last document artifact before the tokenizer.

        Raises:
            MissingInput: no stage counted documents.
        """
        rows = [self.artifacts[row["stage"]] for row in self.found["funnel"] if row["stage"] in self.artifacts]
        holding = [manifest for manifest in rows if manifest.files("documents", self.root)]
        if not rows:
            raise MissingInput(f"{self.root}: no stage counted documents. Make the corpus first: assay run CONFIG")
        return (holding or rows)[-1]

    @property
    def training_energy(self) -> Mapping[str, Any] | None:
        """The row of the training in the table of energy by stage."""
        return next((row for row in self.found["energy"]["stages"] if row["stage"] == "train"), None)

    @property
    def kept(self) -> list[Mapping[str, Any]]:
        """Sources with documents in the corpus, whatever their licence."""
        return [row for row in self.found["sources"] if row["documents_kept"]]

    @property
    def refused(self) -> list[Mapping[str, Any]]:
        """Sources without an allowed licence and without kept documents."""
        return [row for row in self.found["sources"] if row["fate"] == "refused: licence" and not row["documents_kept"]]

    @property
    def licences(self) -> list[str]:
        """SPDX names of the remaining documents' licences.

        A source that the policy refuses counts as long as the corpus holds documents of it.
        """
        counts = self.corpus.stats.get("by_source", {}) if self.found["funnel"] else {}
        held = {name for name, row in counts.items() if row.get("documents_kept")}
        rows = [row for row in self.found["sources"] if row["fate"] == "kept" or row["name"] in held]
        return sorted({licence for row in rows for licence in row["licences"]})

    @property
    def languages(self) -> list[str]:
        """Audited language codes, most documents first."""
        counts = self.at("representation.documents") or {}
        codes = [code for code in counts if counts[code] and code.isascii() and code.isalpha() and 2 <= len(code) <= 3]
        return sorted((code for code in codes if code != "und"), key=lambda code: (-counts[code], code))


def kilowatt_hours(joules: float) -> str:
    """Joules in kWh, to six significant digits."""
    return f"{joules / KWH:.6g} kWh"


def energy_text(facts: Mapping[str, Any]) -> str | None:
    """The run's energy with bounds and methods; None where unknown."""
    total = facts["energy"]["total"]
    if total["joules"] is None:
        return None
    return f"{kilowatt_hours(total['joules'])} ({_bounds(total)}; {'; '.join(total['methods'])})"


def ancestry_text(facts: Mapping[str, Any]) -> str | None:
    """Energy of the last checkpoint with ancestors and bounds; None where unknown."""
    views = facts["energy"]["views"] or {"rows": {}}
    row = views["rows"].get("cumulative")
    if row is None or row["joules"] is None:
        return None
    lacking = f"; without {', '.join(views['missing'])}" if views["missing"] else ""
    return f"{kilowatt_hours(row['joules'])} ({_bounds(row)}{lacking})"


def _bounds(row: Mapping[str, Any]) -> str:
    low, high = (_UNBOUNDED if row[name] is None else kilowatt_hours(row[name]) for name in ("low", "high"))
    return f"from {low} to {high}"


def figure_text(figure: Mapping[str, Any], factors: Mapping[str, Any]) -> str | None:
    """A footprint figure with scenarios, factors, sources, years; None where unknown."""
    if figure["value"] is None:
        return None
    low, high = (_UNBOUNDED if figure[name] is None else f"{figure[name]:.6g}" for name in ("low", "high"))
    return f"{figure['value']:.6g} {figure['unit']} (from {low} to {high}{_with(figure, factors)})"


def _with(figure: Mapping[str, Any], factors: Mapping[str, Any]) -> str:
    sources = [f"{name}: {factors[name]['source']}, {factors[name]['year']}" for name in figure["factors"]]
    lacking = [f"without {', '.join(figure['needs'])}"] if figure["needs"] else []
    return "".join(f"; {text}" for text in (*sources, *lacking))


def architecture(config: Mapping[str, Any]) -> str:
    """A model's shape in a line."""
    experts, layers = config.get("moe") or {}, config["num_hidden_layers"]
    counted = f"{layers} layer{'s' * (layers > 1)}"
    if encoders := config.get("encoder_layers"):
        counted = f"{encoders} layer{'s' * (encoders > 1)} of the encoder, {layers} of the decoder"
    parts = [
        f"{counted}, of width {config['hidden_size']}" if encoders else f"{counted} of width {config['hidden_size']}",
        f"{config['num_attention_heads']} attention heads ({config['num_key_value_heads']} for keys and values)",
        f"{config['feed_forward']} of width {config['intermediate_size']}",
        f"{config['norm']}, {config['norm_position']}",
        f"positions: {config['position_embedding']}, up to {config['max_position_embeddings']:,}",
    ]
    if experts:
        parts.append(f"{experts['num_local_experts']} experts, {experts['num_experts_per_tok']} per token")
    if labels := config.get("num_labels"):
        parts.append(f"a head of {labels} labels in place of the tokens'")
    return f"{'encoder-decoder' if encoders else 'decoder-only'} Transformer: {'; '.join(parts)}"


def task_of(config: Mapping[str, Any]) -> str:
    """A model's task, as the Hugging Face Hub names it."""
    if config.get("num_labels"):
        return "text-classification"
    return "text2text-generation" if config.get("encoder_layers") else "text-generation"


def joined(values: Sequence[str]) -> str | None:
    """Comma-separated values; None for none."""
    return ", ".join(values) or None
