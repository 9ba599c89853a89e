"""Instrument check: scores that an instrument gives to identity terms alone.

    d(t)            = mean score of template t with the group's terms - mean with the terms of the axis' other groups
    instrument_bias = mean of d over the templates                     points of the instrument

Templates are neutral sentences (`templates.toml`), the same for every term, so each difference is due to the term
alone: the design of Dixon et al. 2018, "Measuring and Mitigating Unintended Bias in Text Classification" (AIES).
Interval: Student's t over the templates, paired by template (as Kiritchenko & Mohammad 2018, *SEM); the terms are not a
sample but those that the audit counts. `n` is the sentences scored for the group. An instrument whose differences do
not vary, such as a word count, has an interval of zero width: it is exact for these terms. An instrument that scores
all these sentences equally has one row with a note and no number: a word list without identity terms, such as ours,
cannot score a neutral sentence, so the check does not apply.

An instrument is biased, for a language, when the interval of a group excludes 0 and |instrument_bias| exceeds
`TOLERANCE`, or when a single term's mean is further than `TERM_TOLERANCE` from the mean of the axis' terms: one word
among fifty hardly moves a group. The note names the furthest term. A biased instrument cannot decide a gate.
"""

from __future__ import annotations

import functools
import importlib.resources
import math
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from governance.checks.bias.interval_rows import OTHERS, Row, interval_row
from governance.checks.bias.sentence_tables import Scorer
from governance.checks.bias.statistics import Floats, quantile, two_sided_p
from governance.errors import ConfigError
from governance.kernels.word_lookup import split_words

TOLERANCE = 0.02
TERM_TOLERANCE = 0.1
METRIC = "instrument_bias"
NOT_APPLICABLE = "not applicable: every sentence has the same score, whoever it is about"

Terms = Mapping[str, Mapping[tuple[str, str], Sequence[str]]]
"""language -> (axis, group) -> terms, words or phrases."""


@dataclass(frozen=True)
class SentenceTemplates:
    """The neutral sentences of each language."""

    version: int
    languages: Mapping[str, tuple[str, ...]]


def load_templates(path: Path | None = None) -> SentenceTemplates:
    """Read a templates file; ours if `path` is None.

    Raises:
        ConfigError: it is not such a file, a sentence lacks {term}, or a language has fewer than two.
    """
    origin = str(path) if path else "templates.toml"
    try:
        data = path.read_bytes() if path else importlib.resources.files(__package__).joinpath(origin).read_bytes()
        values: dict[str, Any] = tomllib.loads(data.decode("utf-8"))
        version = int(values.pop("version"))
        languages = {language: tuple(sentences) for language, sentences in sorted(values.items())}
        for language, sentences in languages.items():
            if len(sentences) < 2 or not all(sentence.count("{term}") == 1 for sentence in sentences):
                raise ValueError(f"{language}: needs two sentences or more, each with one {{term}}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{origin}: is not a list of templates ({error!r}). It needs `version = n` and sentences for each language,"
            ' each with one "{term}".'
        ) from error
    return SentenceTemplates(version, languages)


def lexicon_scorers(
    lists: Mapping[str, Mapping[str, float]], identity: Collection[tuple[str, ...]]
) -> dict[str, Scorer]:
    """Scorers that sum the weights of a list's terms.

    A term counts as often as it is repeated; each text is split once.

    Args:
        lists: name -> term (a word or a phrase, of any case) -> weight; +1 and -1 for praise and blame, 1 for listed
            words.
        identity: terms that consume their words, as in the counts: a term that begins within one is not scored.
    """
    longest_first = sorted({len(term) for term in identity}, reverse=True)
    first_words = {term[0] for term in identity}
    split = functools.cache(split_words)

    def used_by_identity(words: list[str]) -> set[int]:
        used: set[int] = set()
        for start, word in enumerate(words):
            if word in first_words and start not in used:
                found = (n for n in longest_first if tuple(words[start : start + n]) in identity)
                used.update(range(start, start + next(found, 0)))
        return used

    def scorer_of(weights: Mapping[str, float]) -> Scorer:
        by_first: dict[str, dict[tuple[str, ...], float]] = {}
        for words, weight in ((split_words(term), weight) for term, weight in weights.items()):
            if words:
                by_first.setdefault(words[0], {})[tuple(words)] = weight

        def score_of(words: list[str]) -> float:
            if by_first.keys().isdisjoint(words):  # most neutral sentences
                return 0.0
            used = used_by_identity(words)
            terms = ((start, by_first.get(word, {})) for start, word in enumerate(words) if start not in used)
            return math.fsum(
                weight
                for start, of in terms
                for term, weight in of.items()
                if tuple(words[start : start + len(term)]) == term
            )

        return lambda texts: [score_of(split(text)) for text in texts]

    return {name: scorer_of(weights) for name, weights in lists.items()}


def instrument_rows(
    instruments: Mapping[str, Mapping[str, Scorer]], terms: Terms, templates: SentenceTemplates
) -> list[Row]:
    """Rows of the suite `instruments`, without q, by language, instrument and group.

    Args:
        instruments: language -> name -> scorer; the caller supplies classifiers.
        terms: the identity terms that the audit counts.
        templates: of each language; one without templates or terms is not checked and has no row.

    Raises:
        ValueError: a scorer does not give one finite score for each text.
    """
    rows: list[Row] = []
    for language in sorted(set(instruments) & set(terms) & set(templates.languages)):
        for name, scorer in sorted(instruments[language].items()):
            names = {"metric": METRIC, "language": language, "instrument": name}
            found: list[Row] = []
            seen: set[float] = set()
            for axis in sorted({axis for axis, _ in terms[language]}):
                groups = {group: list(of) for (at, group), of in sorted(terms[language].items()) if at == axis and of}
                scores = _scores(scorer, groups, templates.languages[language])
                seen.update(score for row in scores.values() for score in row.tolist())
                means = {term: float(row.mean()) for term, row in scores.items()}
                for group in groups if len(groups) > 1 else ():
                    measured = _measured(group, groups, (scores, means))
                    placed = {**names, "axis": axis, "group": group, "against": OTHERS}
                    found.append(interval_row(placed, *measured))
            rows += found if len(seen) > 1 else [interval_row(names, {}, NOT_APPLICABLE)]
    return rows


def _scores(scorer: Scorer, groups: Mapping[str, Sequence[str]], sentences: Sequence[str]) -> dict[str, Floats]:
    """Term -> [templates] scores; a term of two groups is scored once."""
    terms = sorted({term for of in groups.values() for term in of})
    texts = [sentence.replace("{term}", term) for term in terms for sentence in sentences]
    scores = np.asarray(scorer(texts), np.float64)
    if scores.shape != (len(texts),) or not np.isfinite(scores).all():
        raise ValueError(f"an instrument returned {scores.shape} scores for {len(texts)} texts, or non-finite ones")
    return dict(zip(terms, scores.reshape(len(terms), len(sentences)), strict=True))


def _measured(
    group: str, groups: Mapping[str, Sequence[str]], scored: tuple[Mapping[str, Floats], Mapping[str, float]]
) -> tuple[dict[str, float | int], str]:
    scores, means = scored
    own = np.array([scores[term] for term in groups[group]])
    others = np.array([scores[term] for name, of in groups.items() if name != group for term in of])
    value, lower, upper, p = paired(own.mean(axis=0) - others.mean(axis=0))
    overall = float(np.mean(list(means.values())))
    deviations = {term: means[term] - overall for term in sorted(groups[group])}
    furthest = max(deviations, key=lambda term: abs(deviations[term]))
    of_group = (lower > 0 or upper < 0) and abs(value) > TOLERANCE
    of_term = abs(deviations[furthest]) > TERM_TOLERANCE
    note = f'furthest term "{furthest}" {deviations[furthest]:+.3f}'
    numbers = {"value": value, "lower": lower, "upper": upper, "p": p, "n": int(own.size)}
    return numbers, f"biased: {note}" if of_group or of_term else f"not biased: {note}"


def paired(differences: Floats) -> tuple[float, float, float, float]:
    """Mean, 95 % interval and p of paired differences [templates]."""
    mean, number = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(number)
    if error < 1e-12:
        return mean, mean, mean, math.nan
    margin = float(quantile(number - 1)) * error
    return mean, mean - margin, mean + margin, float(two_sided_p(mean / error, number - 1))


def biased_instruments(rows: Collection[Row]) -> set[tuple[str, str]]:
    """The (instrument, language) that a row of the suite found biased."""
    return {
        (str(row["instrument"]), str(row["language"])) for row in rows if str(row["note"] or "").startswith("biased")
    }
