"""Card of a run in six lines, and trainings with other settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from governance.errors import ManifestError
from governance.manifest import FILE_NAME, read_manifest

_SHOWN = 3
"""Settings or trainings that a hint names."""


def card(page: Path, seconds: float) -> list[str]:
    """Lines about the report at `page`; `seconds` is the whole run's."""
    found = json.loads(page.with_name("report.json").read_bytes())["summary"]
    known = {name: value for name, value in found.items() if value is not None}
    lines = [f"verdict     {found['verdict']} under {found['policy']}"]
    if "documents_kept" in known:
        tokens = f", {known['train_tokens']:,} training tokens" if "train_tokens" in known else ""
        lines.append(f"corpus      {known['documents_kept']:,} of {known['documents_in']:,} documents kept{tokens}")
    if "steps" in known:
        figures = [
            f"{words} {known[name]:.4g}"
            for name, words in (("validation_loss", "validation loss"), ("bits_per_byte", "bits a byte"))
            if name in known
        ]
        lines.append(", ".join([f"training    {known['steps']:,} steps", *figures]))
    if "energy_kwh" in known:
        low, high = (known.get(f"energy_{bound}_kwh") for bound in ("low", "high"))
        bounds = [
            "no lower bound" if low is None else f"at least {low:.3g}",
            "no upper bound" if high is None else f"at most {high:.3g}",
        ]
        lines.append(f"energy      {known['energy_kwh']:.3g} kWh ({', '.join(bounds)})")
    return [*lines, f"time        {seconds / 60:.1f} minutes", f"report: {page}"]


def other_trainings(recipe: Mapping[str, Any], root: Path) -> str:
    """Hint: finished trainings of this root and how their settings differ."""
    ours, found = dict(_settings(recipe, "")), []
    for path in sorted(root.glob(f"train/*/{FILE_NAME}"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            theirs = dict(_settings(read_manifest(path).config, ""))
        except ManifestError:
            continue
        other = [name for name in theirs if name in ours and theirs[name] != ours[name]]
        words = " ".join(f"--set {name}={_toml(theirs[name])}" for name in other[:_SHOWN])
        more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
        found.append(f"\n  found: {path.parent.relative_to(root)} {f'with {words}{more}' if other else ''}".rstrip())
    return "".join(found[:_SHOWN])


def _settings(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _settings(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, json.loads(json.dumps(value))


def _toml(value: Any) -> str:
    text = json.dumps(value)
    return f"'{text}'" if '"' in text or " " in text else text
