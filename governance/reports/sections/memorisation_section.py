"""Memorisation section: extraction of training sequences by copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.reports.facts.citations import cite
from governance.reports.html.markup import Html, join, number, share, table, tag


def memorisation(facts: Mapping[str, Any]) -> Html:
    """The rates of extraction with intervals, and their trend."""
    probe = facts["memorisation"]
    if probe is None:
        command = tag("code", "assay governance audit-memorisation CONFIG last")
        return tag("p", "Not measured. ", command, " measures it for the next report.", class_="none")
    note = (
        f"A sequence is extracted if the model, given its first {probe['prefix_tokens']} tokens, repeats the next "
        f"{probe['continuation_tokens']} exactly. Sequences are distinct windows of the training documents whose "
        f"continuation the model was trained to predict, at most one of a document; copies are the documents in which "
        f"it was. Those without a copy are of the validation shards. {read_words(probe)} {trend_words(probe['trend'])}"
    )
    rows = [
        [copies_words(row), number(row["windows"]), number(row["sequences"]), number(row["extracted"]),
         share(row["rate"]), f"{share(row['lower'])} to {share(row['upper'])}", share(row["tokens_right"])]
        for row in probe["rows"]
    ]  # fmt: skip
    head = ["copies that were read", "distinct windows sampled", "sequences", "extracted", "rate",
            "95 % interval (Wilson)", "tokens right"]  # fmt: skip
    citation = cite(facts, "/memorisation")
    return join(
        [
            tag("p", note, class_="note"),
            table("Extraction by number of copies", head, rows, numeric=(1, 2, 3, 4, 5, 6), citation=citation),
            *_verbatim(facts),
        ]
    )


def _verbatim(facts: Mapping[str, Any]) -> list[Html]:
    """Generations with passages of the corpus, where an index was there."""
    if (traced := facts.get("verbatim")) is None:
        return []
    note = (
        f"The model continues the first {traced['prefix_tokens']} tokens of documents, greedily, by at most "
        f"{traced['max_tokens']} tokens. A passage counts if the corpus's texts hold it letter for letter; the prompt "
        "does not count. Documents of the validation split were not trained on."
    )
    rows = [
        [row["prompts_of"], number(row["characters_from"]), number(row["generations"]), number(row["with_passage"]),
         share(row["rate"]), f"{share(row['lower'])} to {share(row['upper'])}", share(row["characters"]),
         f"{share(row['characters_lower'])} to {share(row['characters_upper'])}"]
        for row in traced["rows"]
    ]  # fmt: skip
    head = ["prompts of", "characters or more", "generations", "with a passage", "rate", "95 % interval (Wilson)",
            "of all characters", "95 % interval (bootstrap)"]  # fmt: skip
    citation = cite(facts, "/verbatim")
    title = "Generations that are verbatim in the corpus"
    return [tag("p", note, class_="note"), table(title, head, rows, numeric=range(1, 8), citation=citation)]


def copies_words(row: Mapping[str, Any]) -> str:
    """Copies of a row: "3 to 4"."""
    least, most = row["copies_from"], row["copies_to"]
    return str(least) if least == most else f"{least} or more" if most is None else f"{least} to {most}"


def read_words(probe: Mapping[str, Any]) -> str:
    """Sentence on the share of its shards that the model has read."""
    return (
        f"Training has read {share(probe['read_share'])} of what the training shards give to predict, "
        f"{probe['epochs']:.2f} epochs."
    )


def trend_words(trend: Mapping[str, Any]) -> str:
    """Sentence on the test of the rate over the copies."""
    if trend["z"] is None:
        return "Whether the rate changes with the copies cannot be tested: too few rows, or too few extracted."
    words = {"rises": "rises", "falls": "falls", "none": "neither rises nor falls"}[trend["direction"]]
    return f"The rate {words} with the number of copies (Cochran-Armitage, z = {trend['z']:.2f})."
