"""BLEU and chrF of translations, by sacrebleu (arXiv:1804.08771), with its signatures.

The interval is sacrebleu's: 1,000 resamples of the segments with a fixed seed, which the signature states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

RESAMPLES = 1000


@dataclass(frozen=True)
class CorpusScore:
    """A score of all segments, from 0 to 100."""

    score: float
    lower: float
    """Beginning of the 95 % bootstrap interval."""
    upper: float
    signature: str


def corpus_scores(translations: Sequence[str], references: Sequence[str], tokenizer: str) -> dict[str, CorpusScore]:
    """BLEU and chrF of aligned segments, one reference each.

    Raises:
        ValueError: their numbers differ.
    """
    if len(translations) != len(references):
        raise ValueError(f"{len(translations)} translations of {len(references)} references")
    found = {}
    for name, metric in (("bleu", BLEU(tokenize=tokenizer)), ("chrf", CHRF())):
        result = metric.corpus_score(list(translations), [list(references)], n_bootstrap=RESAMPLES)
        middle, half = float(result._mean), float(result._ci)
        signature = str(metric.get_signature())
        found[name] = CorpusScore(float(result.score), max(middle - half, 0.0), min(middle + half, 100.0), signature)
    return found
