"""Clean stage: keep documents that pass every filter, record rejected ones.

Order of the reasons, by what a rule costs; a document is removed with the first that holds, and no dearer one is tried:

    too_long  licence_refused  opted_out  blocked   its columns say so: the text is neither normalised nor measured
    empty                                           1 to 4 ms per MB: it is normalised, and lines are cut out
    language_not_wanted                             4 ms per MB more: its language is identified
    then those of `quality_rules.RULES` from top to bottom, over features that are measured together

Where a document is kept, the order changes nothing. The language of a document that its columns refuse decides nothing
either, but the audit compares by language what was removed: `identify_refused`.

Source code (`language` is "zxx" when it comes in, as `type = "code"` says) has no language to identify and is no
prose: its only rules are those of `[data.clean.by_language.zxx]`, and no line is cut out.

The text is normalised first, and minimally: unwanted characters go (C0 and C1 controls but LF and tab, DEL, U+FEFF),
every line end (CRLF, CR, vertical tab, form feed, NEL) becomes LF, and the text becomes NFC (Unicode annex 15). Blanks,
quotes and case stay. With `c4_lines` the lines that C4 drops are cut out next (`kernels/lines.py` says which). The
features are those of the text that is left. A removed document keeps its raw text, and its `language` as it was
identified (of the raw text, where its columns refuse it).

Roles: `documents`, `removed`, `features` (one row per document that came in, in order: id, source, language,
language_confidence, language_share (of the text's bytes; below `language.MIXED_SHARE` it is mixed), licence, opt_out,
bytes of the raw text, the features by name, unspaced, kept, reason; a feature is null where it has no value: all of
them for a document that is removed before the quality rules, `stop_words` for a language without a list, and for one
but English that is less probable than `language.SURE`: mostly such a text is in a language that the model does not
know).

Price: one pass per shard, a row group (8 MiB of text) at a time. Each shard is made by itself.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data_pipeline.documents import (
    CODE_LANGUAGE,
    DOCUMENT_SCHEMA,
    REMOVED_SCHEMA,
    edited,
    funnel,
    gathered,
    map_documents,
    pass_on,
    split_table,
    with_column,
)
from data_pipeline.filters.blocklists import blocked_by, words_by_language
from data_pipeline.filters.own_language_model import file_of
from data_pipeline.filters.quality_rules import (
    LANGUAGES,
    MAX_UNSPACED_SHARE,
    PRESETS,
    RULES,
    UNSPACED_LANGUAGES,
    Floats,
    Mask,
    Preset,
    Thresholds,
    judge,
    limits,
)
from data_pipeline.normalised_text import normalise
from governance.log import get_logger
from governance.manifest import Manifest
from governance.parallel import ShardMade
from governance.stage import Made, Recipe, Runtime, run_stage
from governance.verified_files import guarded

VERSION = 12


class CleanConfig(Thresholds):
    """Conditions that a document must meet."""

    presets: tuple[Preset, ...] = ("gopher",)
    """Sets of published bounds, where two set one the stricter; "gopher", "c4", "fineweb", "fineweb_paper"."""
    by_language: dict[Annotated[str, Field(pattern="^[a-z]{2,3}$")], Thresholds] = Field(default={})
    """Language code -> bounds that hold for it instead: `[data.clean.by_language.th]`."""
    c4_lines: bool | None = None
    """Cut out the lines that C4 drops: without terminal punctuation (Thai and Lao have none and need none), short,
    about scripts, cookies or terms of use. Unset: only with the preset "fineweb"."""
    c4_min_line_words: int | None = Field(default=None, ge=0)
    """Words below which a line is dropped with `c4_lines`. Unset: 5, with "fineweb" 3."""
    c4_terminal_punctuation: bool | None = None
    """Drop lines without terminal punctuation with `c4_lines`. Unset: yes, with "fineweb" no."""
    refuse_licences: tuple[str, ...] = ("NOASSERTION",)
    """SPDX identifiers or expressions, each compared with a document's whole licence; such documents are removed."""
    refuse_opt_out: bool = True
    """Remove documents whose rights holder has reserved their use, by any signal in the column `opt_out`."""
    languages: tuple[Annotated[str, Field(pattern="^[a-z]{2,3}$")], ...] = ()
    """Codes of the languages that stay (ISO 639-1, else 639-3; "und": undetermined); none named: all stay."""
    language_model: str = Field(default="", exclude=True)
    """A fastText model that identifies languages (GlotLID's .bin), relative to the run's file; "": lid.176. Its path
    decides nothing; its digest is in the key."""
    min_language_confidence: float = Field(default=0.3, ge=0, le=1)
    """The model's probability below which a language is "und"."""
    identify_refused: bool = True
    """Language identification of documents that their columns refuse. Without it they are "und", which saves 4 ms
    per MB of them, and the audit cannot say which groups these rules remove."""
    max_document_bytes: int = Field(default=10_000_000, gt=0)
    """UTF-8 bytes of raw text; a longer document is removed unread."""


def normalise_texts(texts: pa.LargeStringArray, skip: Mask) -> tuple[pa.LargeStringArray, int]:
    """Normalise all texts but those of `skip`; return the number changed, too.

    Compiled code finds the texts that may change: those with a control character, with another line end, or for which
    the quick check of NFC is undecided. Python normalises only these.
    """
    from governance.kernels.buffers import NEEDS_CONTROL_REPAIR, scan_texts, text_buffers

    flags = scan_texts(*text_buffers(texts))
    changed: dict[int, str] = {}
    for row in np.flatnonzero((flags > 0) & ~skip).tolist():
        text = texts[row].as_py()
        if flags[row] & NEEDS_CONTROL_REPAIR or not unicodedata.is_normalized("NFC", text):
            changed[row] = normalise(text)
    return edited(texts, changed), len(changed)


def profiles_of(
    config: CleanConfig, languages: Sequence[str], unspaced: Mask
) -> tuple[list[int], list[dict[str, float]]]:
    """Index of the bounds for each document, by language and script."""
    known: dict[tuple[str, bool], int] = {}
    bounds: list[dict[str, float]] = []
    pairs = list(zip(languages, unspaced.tolist(), strict=True))
    of_pair: dict[tuple[str, bool], int] = {}
    for language, without_spaces in dict.fromkeys(pairs):
        known_language = any(language in names for names in (config.by_language, LANGUAGES, UNSPACED_LANGUAGES))
        known_language |= language == CODE_LANGUAGE
        place = (language if known_language else "", without_spaces)
        if place not in known:
            known[place] = len(bounds)
            own = [config.by_language[language]] if language in config.by_language else []
            if language == CODE_LANGUAGE:
                bounds.append(limits((), without_spaces, language, *own))
            else:
                bounds.append(limits(config.presets, without_spaces, language, config, *own))
        of_pair[language, without_spaces] = known[place]
    return [of_pair[pair] for pair in pairs], bounds


def _by_columns(
    config: CleanConfig, table: pa.Table, raw_bytes: npt.NDArray[np.int64], lists: Path | None
) -> tuple[list[str], list[str]]:
    """Reasons and evidence for removals that depend on columns alone."""

    def found(size: int, licence: str, opt_out: str, fetched: str, url: str) -> tuple[str, str]:
        if size > config.max_document_bytes:
            return "too_long", f"bytes={size}"
        if licence in config.refuse_licences:
            return "licence_refused", f"licence={licence}"
        if config.refuse_opt_out and opt_out not in ("", "none"):
            return "opted_out", f"{opt_out} fetched={fetched}"
        if lists is not None and url and (entry := blocked_by(url, lists)):
            return "blocked", entry
        return "", ""

    columns = (table[name].to_pylist() for name in ("licence", "opt_out", "opt_out_fetched", "url"))
    pairs = [found(*row) for row in zip(raw_bytes.tolist(), *columns, strict=True)]
    return [reason for reason, _ in pairs], [evidence for _, evidence in pairs]


def _filtered(texts: pa.LargeStringArray, chosen: Mask) -> pa.LargeStringArray:
    return texts if chosen.all() else texts.filter(pa.array(chosen))


def _features_schema() -> pa.Schema:
    from data_pipeline.kernels.quality import FEATURES

    head = [(name, pa.string()) for name in ("id", "source", "language", "licence", "opt_out")]
    kinds = [*head, ("language_confidence", pa.float64()), ("language_share", pa.float64()), ("bytes", pa.int64())]
    kinds += [(name, pa.float64()) for name in (*FEATURES, "listed_words")]
    return pa.schema([*kinds, ("unspaced", pa.bool_()), ("kept", pa.bool_()), ("reason", pa.string())])


def _clean_group(
    config: CleanConfig, lists: Path | None, model: Path | None, table: pa.Table
) -> tuple[tuple[pa.Table, pa.Table, pa.Table], dict[str, Any]]:
    """A row group's documents kept, removed, and described; and the counts."""
    from data_pipeline.filters.language import MIXED_SHARE, UNDETERMINED, identify

    raw = table["text"].combine_chunks()
    raw_bytes = pc.binary_length(raw).to_numpy(zero_copy_only=False).astype(np.int64)
    code = pc.equal(table["language"], CODE_LANGUAGE).combine_chunks().to_numpy(zero_copy_only=False)
    reasons, evidence = _by_columns(config, table, raw_bytes, lists)
    refused = np.array([bool(reason) for reason in reasons], bool)
    whole, normalised = normalise_texts(raw, refused)
    texts, lines_removed = without_lines(config, whole, code | refused)

    languages = [CODE_LANGUAGE if one else UNDETERMINED for one in code.tolist()]
    confidences, shares = code.astype(np.float64).tolist(), [1.0] * len(code)
    chosen = ~code & (raw_bytes <= config.max_document_bytes if config.identify_refused else ~refused)
    identified = identify(_filtered(texts, chosen), config.min_language_confidence, model)
    for row, language, confidence, share in zip(np.flatnonzero(chosen).tolist(), *identified, strict=True):
        languages[row], confidences[row], shares[row] = language, confidence, share

    text_bytes = pc.binary_length(texts).to_pylist()
    for row in np.flatnonzero(~refused).tolist():
        if text_bytes[row] == 0:
            reasons[row] = "empty"
        elif config.languages and languages[row] not in config.languages:
            reasons[row] = "language_not_wanted"
            evidence[row] = f"language={languages[row]} confidence={confidences[row]:.4f}"

    judged = np.array([not reason for reason in reasons], bool)
    rows = np.flatnonzero(judged)
    of_rows = [languages[row] for row in rows.tolist()]
    listed = listed_languages(of_rows, [confidences[row] for row in rows.tolist()])
    left = _filtered(texts, judged)
    measured = measure(config, left, listed, _filtered(whole, judged) if lines_removed else None)
    measured["listed_words"] = _listed(left, of_rows, lists)
    features = {name: np.full(len(judged), np.nan) for name in measured}
    for name, values in measured.items():
        features[name][rows] = values
    unspaced = features["unspaced_share"] > MAX_UNSPACED_SHARE  # not where it was not measured
    verdicts = judge(measured, *profiles_of(config, of_rows, unspaced[rows]))
    for row, reason, proof in zip(rows.tolist(), *verdicts, strict=True):
        reasons[row], evidence[row] = reason, proof

    table = with_column(table, "language", pa.array(languages, pa.string()))
    kept, removed = split_table(table, reasons, evidence, with_column(table, "text", texts))
    described = {
        **{name: table[name] for name in ("id", "source", "language", "licence", "opt_out")},
        "language_confidence": pa.array(confidences, pa.float64()),
        "language_share": pa.array(shares, pa.float64()),
        "bytes": pa.array(raw_bytes, pa.int64()),
        **{name: pa.array(values, pa.float64(), from_pandas=True) for name, values in features.items()},
        "unspaced": pa.array(unspaced, pa.bool_()),
        "kept": pa.array([not reason for reason in reasons], pa.bool_()),
        "reason": pa.array(reasons, pa.string()),
    }
    counts = funnel(table["source"].to_pylist(), raw_bytes.tolist(), text_bytes, reasons)
    mixed = sum(share < MIXED_SHARE for share in shares)
    extras = _extras(languages, mixed, unspaced, normalised, lines_removed)
    return (kept, removed, pa.table(described).select(_features_schema().names)), {**counts, **extras}


def cuts_lines(config: CleanConfig) -> bool:
    """Return whether lines are cut out of texts."""
    return "fineweb" in config.presets if config.c4_lines is None else config.c4_lines


def without_lines(
    config: CleanConfig, texts: pa.LargeStringArray, skip: Mask | None = None
) -> tuple[pa.LargeStringArray, dict[str, int]]:
    """Texts without the lines that the settings drop, with counts by reason.

    Those of `skip` stay as they are.
    """
    if not cuts_lines(config):
        return texts, {}
    fineweb = "fineweb" in config.presets
    from data_pipeline.kernels.lines import c4_lines

    words, punctuated = config.c4_min_line_words, config.c4_terminal_punctuation
    prose = texts if skip is None or not skip.any() else pc.if_else(pa.array(skip), pa.scalar("", texts.type), texts)
    edited_texts, removed = c4_lines(
        prose,
        min_words=(3 if fineweb else 5) if words is None else words,
        punctuated=not fineweb if punctuated is None else punctuated,
    )
    return edited_texts if prose is texts else pc.if_else(pa.array(skip), texts, edited_texts), removed


def listed_languages(languages: Sequence[str], confidences: Sequence[float]) -> list[str]:
    """The languages whose stop words count; "und" where none do.

    A text of uncertain language is mostly in one that the model does not know, with other function words. English keeps
    its list even then: the model takes text in no language (code, tables) for English, and this rule removes it.
    """
    from data_pipeline.filters.language import SURE, UNDETERMINED

    return [
        code if code == "en" or confidence >= SURE else UNDETERMINED
        for code, confidence in zip(languages, confidences, strict=True)
    ]


def measure(
    config: CleanConfig, texts: pa.Array, languages: Sequence[str], whole: pa.Array | None = None
) -> dict[str, Floats]:
    """The features by name, as the presets count them.

    With the preset "fineweb", Gopher's features are those of `whole`, the texts before lines were cut out, as in its
    published code.
    """
    from data_pipeline.kernels.quality import FEATURES, measure_texts

    overwritten = whole is not None and "fineweb" in config.presets  # all features of n-grams, and of stop words
    values = measure_texts(texts, languages, grams=not overwritten)
    features = {name: values[:, column] for column, name in enumerate(FEATURES)}
    if "fineweb" not in config.presets:
        return features
    from data_pipeline.kernels.word_pieces import PIECE_FEATURES, measure_pieces

    spaced = features["unspaced_share"] <= MAX_UNSPACED_SHARE
    counted, pieces = measure_pieces(texts, grams=not overwritten)
    longer = np.where(spaced, features["words"] / np.maximum(pieces, 1), 1)
    for name in ("hash_ratio", "ellipsis_ratio"):
        features[name] *= longer
    for column, name in enumerate(PIECE_FEATURES):
        features[name] = np.where(spaced, counted[:, column], features[name])
    if whole is not None:
        before = measure(config, whole, languages)
        gophers = {rule.feature for rule in RULES if rule.field in PRESETS["gopher"]}
        features |= {name: before[name] for name in gophers - {"duplicate_line_character_share"}}
    return features


def _listed(texts: pa.Array, languages: Sequence[str], lists: Path | None) -> Floats:
    if lists is None or not (words := words_by_language(lists)):
        return np.full(len(texts), np.nan)
    from data_pipeline.kernels.lines import count_listed_words

    return count_listed_words(texts, languages, words)


def _extras(
    languages: Sequence[str], mixed: int, unspaced: Mask, normalised: int, lines: dict[str, int]
) -> dict[str, Any]:
    counted = {code: languages.count(code) for code in sorted(set(languages))}
    return {
        "languages": counted, "mixed_languages": mixed, "normalised": normalised, "unspaced": int(unspaced.sum()),
        "lines_removed": lines,
    }  # fmt: skip


def _none() -> dict[str, Any]:
    return {**funnel([], [], [], []), **_extras([], 0, np.zeros(0, bool), 0, {})}


def _clean_shard(
    config: CleanConfig, payload: tuple[Path, Path | None, Path | None], path_of: Callable[[str], Path]
) -> ShardMade:
    path, lists, model = payload
    schemas = {"documents": DOCUMENT_SCHEMA, "removed": REMOVED_SCHEMA, "features": _features_schema()}
    return pass_on(path, path_of, schemas, lambda group: _clean_group(config, lists, model, group), _none())


def _counts_words(config: CleanConfig) -> bool:
    sections = [[], *([own] for own in config.by_language.values())]
    return any("max_listed_words" in limits(config.presets, False, "", config, *own) for own in sections)


def clean(
    documents: Manifest,
    config: CleanConfig,
    runtime: Runtime,
    lists: Manifest | None = None,
    model: Manifest | None = None,
) -> Manifest:
    """Keep the documents that every filter keeps; count the others by reason.

    `lists` is the artifact of the stage of that name: blocked domains and URLs, and words to count. `model` is the
    run's own language model, if it has one.

    `stats` adds to the common counts: `languages` (documents that came in, by code), `mixed_languages` (documents with
    parts in several), `normalised` (documents whose text changed), `unspaced` (documents in a script without spaces),
    `lines_removed` (lines cut out, by reason). The last three cover only documents whose text was read.

    Raises:
        ManifestError: a shard cannot be read.
        MissingInput: the language model is not installed, or the artifact is not made and `runtime.make` is False.
    """
    recipe = Recipe("clean", VERSION, config)
    more = [manifest for manifest in (lists, model) if manifest is not None]

    def make(folder: Path) -> Made:
        if lists is None and _counts_words(config):
            get_logger(__name__).warning("clean: max_listed_words has no effect: there are no [data.lists] with words")
        known = tuple(manifest.digest for manifest in more)
        at = None if lists is None else runtime.root / lists.folder
        own = None if model is None else file_of(model, runtime.root)
        done = map_documents(recipe, _clean_shard, documents, [at, own], known, folder, runtime)
        made = gathered(done, _none())
        if made.stats["documents_in"] and not made.stats["documents_kept"]:
            most = max(made.stats["removed"].items(), key=lambda item: item[1])
            get_logger(__name__).warning("clean: kept no document; most were removed as %s (%d)", *most)
        return made

    read = [output for manifest in more for output in manifest.outputs]
    inputs = [manifest.as_input() for manifest in (documents, *more)]
    return run_stage(recipe, inputs, runtime, guarded(make, read, runtime.root))
