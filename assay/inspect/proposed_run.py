"""Run's file that `assay inspect` proposes: sources, rules, and a first training.

The training is sized for two cores: 2.6 million parameters and at most 200 steps of 2,048 tokens, a few minutes. A
small corpus gets a smaller vocabulary, and fewer steps (20 at least), so that no text is read more than four times:
repeats up to there are nearly as good as new text (arXiv:2305.16264).
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from assay.inspect.delimited_form import GUESS
from assay.inspect.formats import WITHOUT_FIELDS, InputFiles
from data_pipeline.decontamination.evaluation_sets import EvaluationSet

_ROWS, _LENGTH = 8, 256
_MAX_STEPS, _MIN_STEPS = 200, 20
_MAX_READINGS = 4
_BYTES_PER_TOKEN = 3.5
_VOCABULARIES = ((2_000_000, 4096), (500_000, 2048), (0, 1024))
"""Bytes of text from which a vocabulary of that size is proposed."""
_HELD_OUT = 20
"""Documents that the validation has at least, in expectation."""


@dataclass(frozen=True)
class KeptTexts:
    """Counts of the texts that a run of all files would keep.

    Estimated from the texts that were read.
    """

    documents: int
    bytes: int
    short: int = 0
    """Documents that the usual rules remove as too short, where these are most of all; else 0."""


def proposed_run(
    path: Path,
    usable: Sequence[tuple[InputFiles, Mapping[str, str]]],
    sets: Sequence[EvaluationSet],
    kept: KeptTexts,
    causes: Sequence[str],
    left_out: Sequence[str] = (),
) -> str:
    """Write the run's file for these files.

    Each of `causes` would close a gate; each of `left_out` names files that are in no source.
    """
    parts = [
        "# Proposed by `assay inspect`. Replace each licence by the SPDX expression of the texts, then remove",
        "# refuse_licences: by default documents without a known licence are removed.",
    ]
    if any(group.licence != "NOASSERTION" for group, _ in usable):
        parts += ["# The licence below is what the data set's card states: check it."]
    if any(GUESS in group.form.values() for group, _ in usable):
        parts += [f"# The encoding {GUESS} is a guess: check the letters of some texts (assay data show)."]
    if causes:
        parts += [
            "# Gates that would close, so that nothing would be trained (a policy to edit: `assay init --from policy`):"
        ]
        parts += [textwrap.fill(cause, 110, initial_indent="# - ", subsequent_indent="#   ") for cause in causes]
    if left_out:
        parts += ["# Left out, so that no document comes from them:"]
        parts += [textwrap.fill(line, 110, initial_indent="# - ", subsequent_indent="#   ") for line in left_out]
    parts += [""]
    for number, (group, fields) in enumerate(usable):
        section = source_section(number, group, fields, _patterns(group, path))
        if any(file.is_symlink() for file in group.files):  # as in a snapshot of the hub's cache
            section["follow_links"] = True
        parts += [_table("[[data.sources]]", section)]
    parts += [_clean(kept)]
    for one in sets:
        given = {key: value for key, value in one.model_dump().items() if value}
        parts += [_table("[[data.decontaminate.sets]]", given)]
    return "\n".join([*parts, *_training(kept)])


def _table(head: str, values: Mapping[str, Any]) -> str:
    return "\n".join([head, *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()), ""])


def _clean(kept: KeptTexts) -> str:
    section = _table("[data.clean]", {"refuse_licences": []})
    if not kept.short:
        return section
    return (
        f"{section}# The usual rules, made for web pages, would remove {kept.short:,} documents as too short.\n"
        "# Without presets they stay; remove this line to apply the rules.\npresets = []\n"
    )


def source_section(number: int, group: InputFiles, fields: Mapping[str, str], paths: Sequence[str]) -> dict[str, Any]:
    """A `[[data.sources]]` section for files of one kind."""
    section: dict[str, Any] = {"type": group.kind, "name": f"source-{number + 1}", "licence": group.licence}
    section |= {"paths": list(paths), **group.form}
    if group.kind not in WITHOUT_FIELDS:
        names = {f"{role}_field": name for role, name in fields.items() if name and name != role}
        section |= names | ({"id_field": fields["id"]} if fields.get("id") else {})
        section |= {
            f"{role}_field": fields[role] for role in ("url", "language", "licence", "messages") if fields.get(role)
        }
    return section


def _patterns(group: InputFiles, folder: Path) -> list[str]:
    if folder.is_file() or group.part or group.kind == "mediawiki":  # other .xml files are not dumps
        return [escape(str(file.absolute())) for file in group.files]
    endings = sorted({file.name[-len(group.ending) :] for file in group.files})  # .txt and .TXT
    return [f"{escape(str(folder.absolute()))}/**/*{ending}" for ending in endings]


def _training(kept: KeptTexts) -> list[str]:
    """Sections of the first training."""
    vocabulary = next(size for least, size in _VOCABULARIES if kept.bytes >= least)
    steps = int(_MAX_READINGS * kept.bytes / _BYTES_PER_TOKEN / (_ROWS * _LENGTH))
    steps = max(_MIN_STEPS, min(_MAX_STEPS, steps))
    return [
        "# A first training: a few minutes on two cores. It shows that everything works; the model is far too small",
        "# to write good text. To grow it, raise steps, then vocabulary_size, hidden_size and num_hidden_layers; or",
        "# name a shipped size after this file, which replaces all below: assay run run.toml configs/10m.toml",
        _table("[data.tokenizer]", {"vocabulary_size": vocabulary}),
        _table(
            "[data.encode]", {"validation_share": round(min(0.2, max(0.03, _HELD_OUT / max(1, kept.documents))), 2)}
        ),
        _table(
            "[model]",
            {
                "hidden_size": 192,
                "intermediate_size": 512,
                "num_hidden_layers": 4,
                "num_attention_heads": 6,
                "num_key_value_heads": 6,
                "max_position_embeddings": _LENGTH,
                "tie_word_embeddings": True,
            },
        ),
        _table("[optim]", {"learning_rate": 0.003, "warmup_steps": steps // 20, "decay_steps": steps // 4}),
        _table(
            "[train]",
            {
                "sequence_length": _LENGTH,
                "global_batch_size": _ROWS,
                "steps": steps,
                "validate_every_steps": max(10, steps // 4),
            },
        ),
        _table("[engine]", {"micro_batch_size": _ROWS}),
    ]
