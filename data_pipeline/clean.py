"""Keep the documents that every filter keeps; what is dropped is written beside them with the first reason.

Order of the reasons; a document is removed with the first that holds:

    empty  too_long  licence_refused  language_not_wanted
    then those of `RULES` from top to bottom (the quality rules of Gopher, then its repetition rules)

The text is normalised first, and minimally: unwanted characters go (C0 and C1 controls but LF and tab, DEL, U+FEFF),
every line end (CRLF, CR, vertical tab, form feed, NEL) becomes LF, and the text becomes NFC (Unicode annex 15). Blanks,
quotes and case stay. A removed document keeps its raw text, and its `language` as it was identified.

Rules about words are not applied where more than three tenths of a text's characters belong to a script without spaces
(Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan): there a run between blanks is no word. `stats` counts such
documents as `word_rules_skipped`, and the table of features says of each whether `word_rules` held for it. The stop
word rule holds for the languages that have a list (`kernels/quality.py`) and nowhere else.

Roles: `documents`, `removed`, `features` (one row a document that came in, in order: id, source, language,
language_confidence, licence, bytes of the raw text, the features by name, word_rules, kept, reason; a feature is null
where it has no value: all of them for a text that is too long, `stop_words` for a language without a list).

Price: one pass a shard, which is held in memory about three times. Each shard is made by itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data_pipeline.documents import DOCUMENT_SCHEMA, REMOVED_SCHEMA, funnel, read_table, write_table
from data_pipeline.parallel import Shard, ShardMade, map_shards, sum_stats
from governance.config import Section
from governance.log import get_logger
from governance.manifest import Manifest, Output
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 1
MAX_UNSPACED_SHARE = 0.3  # above it, rules about words mean nothing

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class CleanConfig(Section):
    """What a document must be to stay; the thresholds are those of Gopher (Rae et al. 2021, table A1)."""

    refuse_licences: tuple[str, ...] = ("NOASSERTION",)
    """SPDX identifiers or expressions, each compared with a document's whole licence; such documents are removed."""
    languages: tuple[str, ...] = ()
    """Codes of the languages that stay (ISO 639-1, else 639-3; "und": undetermined); none named: all stay."""
    min_language_confidence: float = Field(default=0.3, ge=0, le=1)
    """The model's probability below which a language is "und"."""
    max_document_bytes: int = Field(default=10_000_000, gt=0)
    """UTF-8 bytes of raw text; a longer document is removed unread."""

    min_words: int = Field(default=50, ge=0)
    """Words: runs between white space."""
    max_words: int = Field(default=100_000, ge=0)
    """Words: runs between white space."""
    min_mean_word_length: float = Field(default=3.0, ge=0)
    """Code points a word."""
    max_mean_word_length: float = Field(default=10.0, ge=0)
    """Code points a word."""
    max_hash_ratio: float = Field(default=0.1, ge=0)
    """Hash signs a word."""
    max_ellipsis_ratio: float = Field(default=0.1, ge=0)
    """Ellipses ("..." or "…") a word."""
    max_bullet_line_share: float = Field(default=0.9, ge=0, le=1)
    """Lines that open with a bullet, of all lines that are not blank."""
    max_ellipsis_line_share: float = Field(default=0.3, ge=0, le=1)
    """Lines that end in an ellipsis, of all lines that are not blank."""
    min_alphabetic_word_share: float = Field(default=0.8, ge=0, le=1)
    """Words with a letter, of all words."""
    min_stop_words: int = Field(default=2, ge=0, le=8)
    """Different stop words of the document's language, of eight."""
    max_duplicate_line_share: float = Field(default=0.3, ge=0, le=1)
    """Lines equal to an earlier one, of all lines."""
    max_duplicate_line_character_share: float = Field(default=0.2, ge=0, le=1)
    """The characters of such lines, of those of all lines."""
    max_duplicate_paragraph_share: float = Field(default=0.3, ge=0, le=1)
    """Paragraphs equal to an earlier one, of all paragraphs."""
    max_duplicate_paragraph_character_share: float = Field(default=0.2, ge=0, le=1)
    """The characters of such paragraphs, of those of all."""
    max_top_2_gram_share: float = Field(default=0.20, ge=0, le=1)
    """Characters of the most frequent pair of words, of those of all words."""
    max_top_3_gram_share: float = Field(default=0.18, ge=0, le=1)
    """As above, three words."""
    max_top_4_gram_share: float = Field(default=0.16, ge=0, le=1)
    """As above, four words."""
    max_duplicate_5_gram_share: float = Field(default=0.15, ge=0, le=1)
    """Characters within runs of five words that stood earlier in the text, of those of all words."""
    max_duplicate_6_gram_share: float = Field(default=0.14, ge=0, le=1)
    """As above, six words."""
    max_duplicate_7_gram_share: float = Field(default=0.13, ge=0, le=1)
    """As above, seven words."""
    max_duplicate_8_gram_share: float = Field(default=0.12, ge=0, le=1)
    """As above, eight words."""
    max_duplicate_9_gram_share: float = Field(default=0.11, ge=0, le=1)
    """As above, nine words."""
    max_duplicate_10_gram_share: float = Field(default=0.10, ge=0, le=1)
    """As above, ten words."""


@dataclass(frozen=True)
class Rule:
    """A document is removed with `reason` when `feature` is outside the section's `<bound>_<feature>`."""

    reason: str
    bound: Literal["min", "max"]
    feature: str
    of_words: bool = True
    """Whether it is a rule about words, which says nothing of scripts without spaces."""


RULES = (
    Rule("too_few_words", "min", "words"),
    Rule("too_many_words", "max", "words"),
    Rule("words_too_short", "min", "mean_word_length"),
    Rule("words_too_long", "max", "mean_word_length"),
    Rule("too_many_hashes", "max", "hash_ratio"),
    Rule("too_many_ellipses", "max", "ellipsis_ratio"),
    Rule("too_many_bullet_lines", "max", "bullet_line_share", of_words=False),
    Rule("too_many_ellipsis_lines", "max", "ellipsis_line_share", of_words=False),
    Rule("too_few_alphabetic_words", "min", "alphabetic_word_share"),
    Rule("too_few_stop_words", "min", "stop_words"),
    Rule("duplicate_lines", "max", "duplicate_line_share", of_words=False),
    Rule("duplicate_line_characters", "max", "duplicate_line_character_share", of_words=False),
    Rule("duplicate_paragraphs", "max", "duplicate_paragraph_share", of_words=False),
    Rule("duplicate_paragraph_characters", "max", "duplicate_paragraph_character_share", of_words=False),
    *(Rule(f"top_{n}_gram", "max", f"top_{n}_gram_share") for n in range(2, 5)),
    *(Rule(f"duplicate_{n}_grams", "max", f"duplicate_{n}_gram_share") for n in range(5, 11)),
)

_LINE_END = re.compile("\r\n?|[\x0b\x0c\x85]")
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")


def normalise(text: str) -> str:
    """The text as every later stage sees it; doing it twice changes nothing more."""
    return unicodedata.normalize("NFC", _UNWANTED.sub("", _LINE_END.sub("\n", text)))


def normalise_texts(texts: pa.LargeStringArray, skip: Mask) -> tuple[pa.LargeStringArray, int]:
    """Normalise each text but those of `skip`; return the texts and how many changed.

    Python sees only texts with a control character, a foreign line end, or a character from U+0300 on.
    """
    from data_pipeline.kernels.buffers import NEEDS_CONTROL_REPAIR, scan_texts, text_buffers

    flags = scan_texts(*text_buffers(texts))
    changed: dict[int, str] = {}
    for row in np.flatnonzero((flags > 0) & ~skip).tolist():
        text = texts[row].as_py()
        if flags[row] & NEEDS_CONTROL_REPAIR or not unicodedata.is_normalized("NFC", text):
            changed[row] = normalise(text)
    if not changed:
        return texts, 0
    mask = np.zeros(len(texts), bool)
    mask[list(changed)] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(changed.values(), pa.large_string())), len(changed)


def judge(config: CleanConfig, features: dict[str, Floats], word_rules: Mask) -> tuple[list[str], list[str]]:
    """The first reason of `RULES` against each document, and the evidence ("words=12"); "" for one that stays.

    A NaN breaks no rule: the feature has no value there.
    """
    reasons, evidence = [""] * len(word_rules), [""] * len(word_rules)
    open_ = np.ones(len(word_rules), bool)
    for rule in RULES:
        values, limit = features[rule.feature], getattr(config, f"{rule.bound}_{rule.feature}")
        broken = values < limit if rule.bound == "min" else values > limit
        broken &= open_ & (word_rules | (not rule.of_words))
        for row in np.flatnonzero(broken).tolist():
            reasons[row], evidence[row] = rule.reason, f"{rule.feature}={values[row]:.6g}"
        open_ &= ~broken
    return reasons, evidence


def document_shards(documents: Manifest, root: Path, role: str = "documents") -> list[tuple[Output, Path]]:
    """The shards of a role with their digests, in name order."""
    outputs = {root / output.path: output for output in documents.outputs}
    return [(outputs[path], path) for path in documents.files(role, root)]


def split_table(table: pa.Table, reasons: Sequence[str], evidence: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """The rows that stay, and those that go with their reason and evidence."""
    kept = pa.array([not reason for reason in reasons], pa.bool_())
    marked = table.append_column(REMOVED_SCHEMA.field("reason"), pa.array(reasons, pa.string()))
    marked = marked.append_column(REMOVED_SCHEMA.field("evidence"), pa.array(evidence, pa.string()))
    return table.filter(kept), marked.filter(pc.invert(kept))


def _clean_shard(config: CleanConfig, path: Path, path_of: Any) -> ShardMade:
    from data_pipeline.kernels.quality import measure_texts
    from data_pipeline.language import PREFIX_CHARACTERS, identify

    table = read_table(path)
    raw = table["text"].combine_chunks()
    raw_bytes = pc.binary_length(raw).to_numpy(zero_copy_only=False)
    too_long = raw_bytes > config.max_document_bytes
    texts, normalised = normalise_texts(raw, too_long)
    prefixes = pc.utf8_slice_codeunits(texts, 0, PREFIX_CHARACTERS).to_pylist()
    languages, confidences = identify(prefixes, config.min_language_confidence)
    measured = pc.if_else(pa.array(too_long), pa.scalar("", pa.large_string()), texts) if too_long.any() else texts
    features = _named_features(measure_texts(measured, languages), too_long)
    word_rules = ~(features["unspaced_share"] > MAX_UNSPACED_SHARE)

    reasons, evidence = judge(config, features, word_rules)
    text_bytes = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    licences = table["licence"].to_pylist()
    first = zip(text_bytes.tolist(), too_long.tolist(), licences, languages, confidences, strict=True)
    for row, facts in enumerate(first):
        if before := _before_rules(config, *facts):
            reasons[row], evidence[row] = before

    table = table.set_column(
        table.schema.get_field_index("language"), DOCUMENT_SCHEMA.field("language"), pa.array(languages, pa.string())
    )
    text_column = table.schema.get_field_index("text")
    kept, _ = split_table(table.set_column(text_column, DOCUMENT_SCHEMA.field("text"), texts), reasons, evidence)
    _, removed = split_table(table, reasons, evidence)
    described = {
        "id": table["id"],
        "source": table["source"],
        "language": table["language"],
        "language_confidence": pa.array(confidences, pa.float64()),
        "licence": table["licence"],
        "bytes": pa.array(raw_bytes, pa.int64()),
        **{name: pa.array(values, pa.float64(), from_pandas=True) for name, values in features.items()},
        "word_rules": pa.array(word_rules, pa.bool_()),
        "kept": pa.array([not reason for reason in reasons], pa.bool_()),
        "reason": pa.array(reasons, pa.string()),
    }
    files = {role: path_of(role) for role in ("documents", "removed", "features")}
    for role, made in (("documents", kept), ("removed", removed), ("features", pa.table(described))):
        write_table(files[role], made)
    counts = funnel(table["source"].to_pylist(), raw_bytes.tolist(), text_bytes.tolist(), reasons)
    return ShardMade(files, {**counts, **_extras(languages, word_rules, normalised)})


def _named_features(values: Floats, without: Mask) -> dict[str, Floats]:
    from data_pipeline.kernels.quality import FEATURES

    values[without] = np.nan
    return {name: values[:, column] for column, name in enumerate(FEATURES)}


def _before_rules(
    config: CleanConfig, size: int, too_long: bool, licence: str, language: str, confidence: float
) -> tuple[str, str] | None:
    if size == 0:
        return "empty", ""
    if too_long:
        return "too_long", f"bytes={size}"
    if licence in config.refuse_licences:
        return "licence_refused", f"licence={licence}"
    if config.languages and language not in config.languages:
        return "language_not_wanted", f"language={language} confidence={confidence:.4f}"
    return None


def _extras(languages: Sequence[str], word_rules: Mask, normalised: int) -> dict[str, Any]:
    counted = {code: languages.count(code) for code in sorted(set(languages))}
    return {"languages": counted, "normalised": normalised, "word_rules_skipped": int((~word_rules).sum())}


def clean(documents: Manifest, config: CleanConfig, runtime: Runtime) -> Manifest:
    """Keep the documents that every filter keeps; count the others by reason.

    `stats` adds to the common counts: `languages` (documents that came in, by code), `normalised` (documents whose
    text changed), `word_rules_skipped` (documents in a script without spaces).

    Raises:
        ManifestError: a shard cannot be read.
        MissingInput: the language model is not installed, or the artifact is not made and `runtime.make` is False.
    """
    recipe = Recipe("clean", VERSION, config)

    def make(folder: Path) -> Made:
        inputs = document_shards(documents, runtime.root)
        shards = [Shard(path.stem, (output.sha256,), path) for output, path in inputs]
        done = map_shards(recipe, _clean_shard, shards, folder, runtime)
        none = {**funnel([], [], [], []), **_extras([], np.ones(0, bool), 0)}
        stats = sum_stats([none, *(shard.stats for shard in done)])
        if stats["documents_in"] and not stats["documents_kept"]:
            most = max(stats["removed"].items(), key=lambda item: item[1])
            get_logger(__name__).warning("clean: kept no document; most were removed as %s (%d)", *most)
        return Made([output for shard in done for output in shard.outputs.values()], stats)

    return run_stage(recipe, [documents.as_input()], runtime, make)
