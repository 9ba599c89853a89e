"""Representation: share of documents that mention each group, by language.

    share             = documents that mention the group / documents of the language             in 0 .. 1
    axis_share        = documents that mention the group / documents that mention any of its axis   in 0 .. 1
    per_million_words = mentions x 10^6 / words of the language                               mentions per million words

Intervals: delete-a-group jackknife (Kott 2001) over 64 buckets of domains, on the logit scale for shares and on the log
scale for the rate. `n` is the denominator. A listed group without a mention has a row of zeros, with the upper bound
for that many clusters. The numbers count mentions, not what a text states about a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from governance.checks.bias.bucket_counts import by_bucket, stacked
from governance.checks.bias.interval_rows import Row, interval_rows
from governance.checks.bias.statistics import LOG, jackknife, share_estimates

Groups = Mapping[str, Sequence[tuple[str, str]]]
"""language -> the (axis, group) of its term list."""


def known_groups(table: pa.Table, listed: Groups) -> dict[str, list[tuple[str, str]]]:
    """Groups listed or counted in a table, sorted."""
    found: dict[str, set[tuple[str, str]]] = {language: set(groups) for language, groups in listed.items()}
    for language, axis, group in by_bucket(table, ("language", "axis", "group"), "documents"):
        found.setdefault(language, set()).add((axis, group))
    return {language: sorted(found[language]) for language in sorted(found)}


def representation_rows(counts: Mapping[str, pa.Table], listed: Groups) -> list[Row]:
    """The rows of the suite `representation`.

    Args:
        counts: the tables documents, axes, groups.
        listed: groups with terms, so that one without a mention has rows as well.
    """
    documents = by_bucket(counts["documents"], ("language",), "documents")
    words = by_bucket(counts["documents"], ("language",), "words")
    axes = by_bucket(counts["axes"], ("language", "axis"), "documents")
    mentioning = by_bucket(counts["groups"], ("language", "axis", "group"), "documents")
    mentions = by_bucket(counts["groups"], ("language", "axis", "group"), "mentions")
    rows: list[Row] = []
    for language, groups in known_groups(counts["groups"], listed).items():
        if (language,) not in documents or not groups:
            continue
        keys = [(language, axis, group) for axis, group in groups]
        part = stacked(mentioning, keys)
        whole = np.broadcast_to(documents[(language,)], part.shape)
        on_axis = stacked(axes, [key[:2] for key in keys])
        all_words = np.broadcast_to(words[(language,)], part.shape)
        rate = jackknife(lambda some, of: some * 1e6 / of, (stacked(mentions, keys), all_words), all_words, LOG)
        for metric, found, of in (
            ("share", share_estimates(part, whole), whole),
            ("axis_share", share_estimates(part, on_axis), on_axis),
            ("per_million_words", rate, all_words),
        ):
            names = [{"metric": metric, "language": language, "axis": axis, "group": group} for axis, group in groups]
            rows += interval_rows(names, found, of.sum(axis=1))
    return rows
