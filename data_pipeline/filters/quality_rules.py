"""Quality rules: thresholds over text features, with presets.

A rule is a feature, a bound and a reason. A bound that nothing sets leaves its rule out. What sets it, the later over
the earlier:

1. the presets that are named, where two set one bound the stricter:
   `gopher`   Rae et al. 2021 (arXiv:2112.11446), table A1: quality and repetition;
   `c4`       Raffel et al. 2020 (JMLR 21), section 2.2: the rules on pages; its rules on lines are an edit of the text;
   `fineweb`  the filters that made FineWeb, by its published code (datatrove, examples/fineweb.py): Gopher's, C4's and
              its own, over words with punctuation apart (`kernels/word_pieces.py`) and after C4's edit of lines;
   `fineweb_paper`  Penedo et al. 2024 (arXiv:2406.17557), section 3.6: its own rules as the paper states them;
2. the same presets for text without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan), where
   more than a tenth of a text's characters are so written: `UNSPACED`, by language `UNSPACED_LANGUAGES`; for other text
   by language: `LANGUAGES`;
3. the section's own fields;
4. the section's fields for the document's language, as it was identified: `[data.clean.by_language.th]`.

`min_words = 0` or `max_words = 1e12` turns a preset's rule off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from governance.config import Section

MAX_UNSPACED_SHARE = 0.1
"""Above it a text counts as written without spaces. With one character a word in that share and five in the rest, the
mean is 1 / (share + (1 - share) / 5): from 0.17 on it falls below the least mean length of Gopher."""

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Preset = Literal["gopher", "c4", "fineweb", "fineweb_paper"]


class Thresholds(Section):
    """Bounds of the rules; an absent one is that of the presets."""

    min_words: float | None = Field(default=None, ge=0)
    """Words of the text."""
    max_words: float | None = Field(default=None, ge=0)
    """Words of the text."""
    min_mean_word_length: float | None = Field(default=None, ge=0)
    """Code points per word."""
    max_mean_word_length: float | None = Field(default=None, ge=0)
    """Code points per word."""
    max_hash_ratio: float | None = Field(default=None, ge=0)
    """Hash signs a word."""
    max_ellipsis_ratio: float | None = Field(default=None, ge=0)
    """Ellipses ("..." or "…") per word."""
    max_bullet_line_share: float | None = Field(default=None, ge=0, le=1)
    """Lines that open with a bullet, of all lines that are not blank."""
    max_ellipsis_line_share: float | None = Field(default=None, ge=0, le=1)
    """Lines that end in an ellipsis, of all lines that are not blank."""
    min_alphabetic_word_share: float | None = Field(default=None, ge=0, le=1)
    """Words with a letter, of all words."""
    min_stop_words: float | None = Field(default=None, ge=0, le=8)
    """Different stop words of the document's language, of eight."""
    max_duplicate_line_share: float | None = Field(default=None, ge=0, le=1)
    """Lines equal to an earlier one, of all lines."""
    max_duplicate_line_character_share: float | None = Field(default=None, ge=0, le=1)
    """The characters of such lines, of those of all lines."""
    max_duplicate_paragraph_share: float | None = Field(default=None, ge=0, le=1)
    """Paragraphs equal to an earlier one, of all paragraphs."""
    max_duplicate_paragraph_character_share: float | None = Field(default=None, ge=0, le=1)
    """The characters of such paragraphs, of those of all."""
    max_top_2_gram_share: float | None = Field(default=None, ge=0, le=1)
    """Characters of the most frequent pair of words, of those of all words."""
    max_top_3_gram_share: float | None = Field(default=None, ge=0, le=1)
    """As above, three words."""
    max_top_4_gram_share: float | None = Field(default=None, ge=0, le=1)
    """As above, four words."""
    max_duplicate_5_gram_share: float | None = Field(default=None, ge=0, le=1)
    """Characters within runs of five words that stood earlier in the text, of those of all words."""
    max_duplicate_6_gram_share: float | None = Field(default=None, ge=0, le=1)
    """As above, six words."""
    max_duplicate_7_gram_share: float | None = Field(default=None, ge=0, le=1)
    """As above, seven words."""
    max_duplicate_8_gram_share: float | None = Field(default=None, ge=0, le=1)
    """As above, eight words."""
    max_duplicate_9_gram_share: float | None = Field(default=None, ge=0, le=1)
    """As above, nine words."""
    max_duplicate_10_gram_share: float | None = Field(default=None, ge=0, le=1)
    """As above, ten words."""
    min_sentences: float | None = Field(default=None, ge=0)
    """Sentences: stretches that end in terminal punctuation of any script."""
    max_has_lorem_ipsum: float | None = Field(default=None, ge=0, le=1)
    """0: a text with "lorem ipsum" goes."""
    max_has_curly_bracket: float | None = Field(default=None, ge=0, le=1)
    """0: a text with a curly bracket goes."""
    min_line_punctuation_share: float | None = Field(default=None, ge=0, le=1)
    """Lines that end in terminal punctuation, of all lines that are not blank."""
    max_short_line_share: float | None = Field(default=None, ge=0, le=1)
    """Lines of at most 30 characters, of all lines that are not blank."""
    max_newline_ratio: float | None = Field(default=None, ge=0)
    """Line ends a word."""
    max_listed_words: float | None = Field(default=None, ge=0)
    """Words and phrases of the word list of the document's language (`[data.lists]`), counted each time."""


@dataclass(frozen=True)
class QualityRule:
    """A removal rule: `feature` outside `<bound>_<feature>` removes with `reason`."""

    reason: str
    bound: Literal["min", "max"]
    feature: str

    @property
    def field(self) -> str:
        """The threshold's name."""
        return f"{self.bound}_{self.feature}"


RULES = (
    QualityRule("too_few_words", "min", "words"),
    QualityRule("too_many_words", "max", "words"),
    QualityRule("words_too_short", "min", "mean_word_length"),
    QualityRule("words_too_long", "max", "mean_word_length"),
    QualityRule("too_many_hashes", "max", "hash_ratio"),
    QualityRule("too_many_ellipses", "max", "ellipsis_ratio"),
    QualityRule("too_many_bullet_lines", "max", "bullet_line_share"),
    QualityRule("too_many_ellipsis_lines", "max", "ellipsis_line_share"),
    QualityRule("too_few_alphabetic_words", "min", "alphabetic_word_share"),
    QualityRule("too_few_stop_words", "min", "stop_words"),
    QualityRule("duplicate_lines", "max", "duplicate_line_share"),
    QualityRule("duplicate_line_characters", "max", "duplicate_line_character_share"),
    QualityRule("duplicate_paragraphs", "max", "duplicate_paragraph_share"),
    QualityRule("duplicate_paragraph_characters", "max", "duplicate_paragraph_character_share"),
    *(QualityRule(f"top_{n}_gram", "max", f"top_{n}_gram_share") for n in range(2, 5)),
    *(QualityRule(f"duplicate_{n}_grams", "max", f"duplicate_{n}_gram_share") for n in range(5, 11)),
    QualityRule("too_few_sentences", "min", "sentences"),
    QualityRule("lorem_ipsum", "max", "has_lorem_ipsum"),
    QualityRule("curly_bracket", "max", "has_curly_bracket"),
    QualityRule("too_few_punctuated_lines", "min", "line_punctuation_share"),
    QualityRule("too_many_short_lines", "max", "short_line_share"),
    QualityRule("too_many_line_ends", "max", "newline_ratio"),
    QualityRule("listed_words", "max", "listed_words"),
)

_GOPHER = {
    "min_words": 50, "max_words": 100_000, "min_mean_word_length": 3.0, "max_mean_word_length": 10.0,
    "max_hash_ratio": 0.1, "max_ellipsis_ratio": 0.1, "max_bullet_line_share": 0.9, "max_ellipsis_line_share": 0.3,
    "min_alphabetic_word_share": 0.8, "min_stop_words": 2,
    "max_duplicate_line_share": 0.3, "max_duplicate_line_character_share": 0.2,
    "max_duplicate_paragraph_share": 0.3, "max_duplicate_paragraph_character_share": 0.2,
    "max_top_2_gram_share": 0.20, "max_top_3_gram_share": 0.18, "max_top_4_gram_share": 0.16,
    "max_duplicate_5_gram_share": 0.15, "max_duplicate_6_gram_share": 0.14, "max_duplicate_7_gram_share": 0.13,
    "max_duplicate_8_gram_share": 0.12, "max_duplicate_9_gram_share": 0.11, "max_duplicate_10_gram_share": 0.10,
}  # fmt: skip
_PAGES = {"max_has_lorem_ipsum": 0, "max_has_curly_bracket": 0}
_LINES = {"min_line_punctuation_share": 0.12, "max_short_line_share": 0.67, "max_duplicate_line_character_share": 0.1}

PRESETS: dict[Preset, Mapping[str, float]] = {
    "gopher": _GOPHER,
    "c4": {**_PAGES, "min_sentences": 3, "max_listed_words": 0},
    "fineweb": {
        **_GOPHER, **_PAGES, **_LINES, "max_duplicate_line_character_share": 0.01, "max_newline_ratio": 0.3,
        "min_sentences": 5,
    },
    "fineweb_paper": _LINES,
}  # fmt: skip

_UNSPACED_GOPHER = {
    **_GOPHER, "min_words": 100, "max_words": 200_000, "min_mean_word_length": 0, "max_mean_word_length": np.inf,
    **{f"max_duplicate_{n}_gram_share": 1 for n in range(5, 10)}, "max_duplicate_10_gram_share": 0.15,
}  # fmt: skip
_UNSPACED_LINES = {"max_duplicate_line_character_share": 0.1}

UNSPACED: dict[Preset, Mapping[str, float]] = {
    "gopher": _UNSPACED_GOPHER,
    "c4": {**_PAGES, "max_listed_words": 0},
    "fineweb": {**_UNSPACED_GOPHER, **_PAGES, **_UNSPACED_LINES, "max_newline_ratio": 0.15},
    "fineweb_paper": _UNSPACED_LINES,
}
"""The same where a word is one ideograph or syllable (`kernels/words.py`). Two make a word of other scripts, so counts
are doubled, line ends a word halved, and ten words have the bound of five; the length of a word says nothing. For these
languages Penedo et al. 2025 (arXiv:2506.20920) found, over real words, 0.16 to 0.31 for five, 0.13 to 0.2 line ends
a word, and kept 0.1 for repeated lines. Thai and Lao end no sentence with a mark, and thirty ideographs are not a short
line: as there and in mC4 (Xue et al. 2021, section 3.1) those rules are left out."""

DECLARATION: Mapping[str, tuple[int, float, int]] = {
    "am": (1044, 5.15, 2), "ar": (1332, 4.67, 1), "bn": (1413, 5.88, 1), "dv": (1798, 9.03, 2), "et": (1389, 6.76, 2),
    "eu": (1378, 6.98, 1), "fi": (1276, 7.70, 1), "he": (1275, 4.69, 1), "hy": (1386, 6.96, 2), "ka": (1368, 7.52, 2),
    "kn": (1080, 8.72, 2), "ko": (1185, 2.98, 0), "lt": (1473, 6.40, 1), "lv": (1388, 6.54, 2), "ml": (815, 11.99, 2),
    "pa": (2199, 3.81, 2), "ta": (1206, 9.91, 0), "te": (1126, 8.86, 2), "tr": (1364, 6.54, 1), "ur": (2113, 3.51, 2),
    "vi": (2478, 4.20, 0),
}  # fmt: skip
"""Languages whose measures differ from English: words of the Universal Declaration of Human Rights, their mean length,
and the stop words that a text as long as Gopher's shortest is sure to have.

One text in every language, so a bound moves as the language does. The stop words are the most, up to Gopher's 2, that
this many words drawn at the Declaration's rates have with a probability of at least 0.9. Penedo et al. 2025
(arXiv:2506.20920, section 4.3) fit bounds to each language in the same spirit, on reference corpora."""
ENGLISH = (1747, 5.09)
"""Words of the Declaration in English, and their mean length."""


def language_bounds(words: int, length: float, stop_words: int) -> dict[str, float]:
    """Bounds that replace Gopher's for a language with these measures.

    `min_words` where it needs less than 4/5 of English's words; the bounds on n-grams where it needs more than 6/5, at
    the point of their own lines (0.24 - 0.02 n, 0.20 - 0.01 n) that is as much text; the mean length of a word where
    words are more than 7/5 as long.
    """
    share, longer = words / ENGLISH[0], length / ENGLISH[1]
    bounds: dict[str, float] = {} if stop_words == 2 else {"min_stop_words": stop_words}
    if share < 0.8:
        bounds["min_words"] = round(_GOPHER["min_words"] * share)
    if share > 1.2:
        bounds |= {f"max_top_{n}_gram_share": round(0.24 - 0.02 * n / share, 3) for n in range(2, 5)}
        bounds |= {f"max_duplicate_{n}_gram_share": round(0.20 - 0.01 * n / share, 3) for n in range(5, 11)}
    if longer > 1.4:
        bounds["max_mean_word_length"] = round(_GOPHER["max_mean_word_length"] * longer, 1)
    return bounds


LANGUAGES: Mapping[str, Mapping[str, float]] = {
    code: language_bounds(*measures) | ({"min_mean_word_length": 1} if code == "ko" else {})
    for code, measures in DECLARATION.items()
}
"""Values that replace those of `gopher` and `fineweb` for a language written with spaces. Korean: a character is a
syllable of two or three letters."""


UNSPACED_DECLARATION: Mapping[str, int] = {"km": 5247, "lo": 5589, "my": 6123, "th": 5522}
"""Languages written without spaces that need more than 6/5 of the two units a word that `UNSPACED` counts with: units
of the Declaration."""
UNSPACED_LANGUAGES: Mapping[str, Mapping[str, float]] = {
    code: {"max_duplicate_10_gram_share": round(0.20 - 0.01 * 10 * ENGLISH[0] / units, 3)}
    for code, units in UNSPACED_DECLARATION.items()
}
"""Values that replace those of `UNSPACED`, at the point of Gopher's line (0.20 - 0.01 n) that is as much text: with two
units a word it gives 0.15."""


def limits(presets: Sequence[Preset], unspaced: bool, language: str, *sections: Thresholds) -> dict[str, float]:
    """The bounds that hold, by field.

    They are the presets', the stricter of two, then those that each section sets.
    """
    found: dict[str, float] = {}
    for name in presets:
        known = {**(UNSPACED if unspaced else PRESETS)[name]}
        if name in ("gopher", "fineweb"):
            known |= (UNSPACED_LANGUAGES if unspaced else LANGUAGES).get(language, {})
        for field, value in known.items():
            stricter = max if field.startswith("min_") else min
            found[field] = stricter(found.get(field, value), value)
    for section in sections:
        for field in Thresholds.model_fields:
            if (value := getattr(section, field)) is not None:
                found[field] = value
    return found


def judge(
    features: Mapping[str, Floats], profiles: Sequence[int], bounds: Sequence[Mapping[str, float]]
) -> tuple[list[str], list[str]]:
    """The first reason of `RULES` against each document, and the evidence.

    The evidence is a text such as "words=12"; the reason is "" for a document that stays. `profiles` states for each
    document which of `bounds` holds. A NaN breaks no rule: the feature has no value there.
    """
    kind = np.asarray(profiles, np.int64)
    reasons, evidence = [""] * len(kind), [""] * len(kind)
    open_ = np.ones(len(kind), bool)
    for rule in RULES:
        off = -np.inf if rule.bound == "min" else np.inf
        limit = np.array([bound.get(rule.field, off) for bound in bounds] or [off])
        if rule.feature not in features or np.all(limit == off):
            continue
        values = features[rule.feature]
        broken = values < limit[kind] if rule.bound == "min" else values > limit[kind]
        broken &= open_
        for row in np.flatnonzero(broken).tolist():
            reasons[row], evidence[row] = rule.reason, f"{rule.feature}={values[row]:.6g}"
        open_ &= ~broken
    return reasons, evidence
