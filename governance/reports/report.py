"""Report stage: report.html for people, report.json for programs.

Promises: it measures nothing; every number is read from manifests, verdict, audit, metrics or ledger and cites its
file. The page is one file that needs no network and runs no script; corpus text enters it as escaped text only. It is
also written when the gate is closed. It contains times and energies of `run` blocks, so two runs of one recipe differ
in its bytes; a report that exists for these artifacts and this verdict is reused. Neither torch nor Great Expectations
is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import not_
from pathlib import Path
from typing import Any

from pydantic import Field

from governance.config import Section, canonical_json
from governance.energy.ancestry import RECORD
from governance.energy.factors import Factors
from governance.files import put_in_place, sha256_bytes, write_json, write_text
from governance.lineage.unlisted_files import TO_ROOT, TO_ROOT_FROM_LATEST
from governance.manifest import KEY_LENGTH, Manifest, describe
from governance.reports.facts.report_facts import ReportInputs, facts, in_order
from governance.reports.facts.samples import Mask, mask
from governance.reports.sections.page import page
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 46


class ReportSection(Section):
    """Settings of a report."""

    name: str = ""
    """Title of the page, by default the name of the root's folder."""

    verdict_sha256: str
    """The hash of the verdict's content, signer and subjects included."""
    factors: Factors = Factors()
    """Factors of the footprint."""
    begun: str = Field(default="", pattern=rf"^(train/[0-9a-f]{{{KEY_LENGTH}}})?$")
    """Folder of an unfinished training: not an artifact, but its record lists its faults."""
    begun_bytes: int = 0
    """Size of that record at the time of the report: a longer one gives another report."""
    replays: tuple[str, ...] = Field(default=(), exclude_if=not_)
    """Trainings that repeat this one without documents that were taken down, as the journal states them."""

    @property
    def extra(self) -> ReportInputs:
        """Inputs for the facts."""
        return ReportInputs(self.factors, self.begun, self.name, self.replays)


def report(
    artifacts: Mapping[str, Manifest],
    verdict: Mapping[str, Any],
    root: Path,
    runtime: Runtime,
    rules: Mask = mask,
    extra: ReportInputs | None = None,
) -> Manifest:
    """Write report.html and report.json about these artifacts and this verdict.

    `<root>/report/latest.html` and `latest.json` are second names of the last one's files; if that links Data Docs,
    latest.html is a copy with shorter links.

    Args:
        artifacts: stage -> manifest; any stage may be missing, and the page then states that.
        verdict: the signed decision's content with `key_id` and `subjects`; `{}` for none.
        root: the artifacts' root.
        runtime: where to write; its root is usually `root`.
        rules: masking of personal data in examples; by default only e-mail addresses and runs of digits are masked.
        extra: further inputs; an unfinished training is ignored if `train` is given, and the name is the root's.

    Raises:
        ManifestError: a shard, the audit or the ledger cannot be read.
    """
    extra = extra or ReportInputs()
    record = root / extra.begun / RECORD
    begun = extra.begun if extra.begun and "train" not in artifacts and record.is_file() else ""
    section = ReportSection(
        name=root.resolve().name,
        verdict_sha256=sha256_bytes(canonical_json(verdict)),
        factors=extra.factors or Factors(),
        begun=begun,
        begun_bytes=record.stat().st_size if begun else 0,
        replays=extra.replays,
    )

    def make(folder: Path) -> Made:
        found = facts(artifacts, verdict, root, rules, section.extra)
        write_json(folder / "report.json", found)
        write_text(folder / "report.html", page(found))
        files = [folder / "report.html", folder / "report.json"]
        return Made([describe(path, runtime.root) for path in files], {"artifacts": len(artifacts)})

    inputs = [manifest.as_input() for manifest in in_order(artifacts)]
    made = run_stage(Recipe("report", VERSION, section), inputs, runtime, make)
    if runtime.make:
        for suffix in (".html", ".json"):
            put_in_place(runtime.root / made.folder / f"report{suffix}", runtime.root / "report" / f"latest{suffix}")
        if "data_docs" in artifacts:
            latest = runtime.root / "report" / "latest.html"
            write_text(
                latest, latest.read_text(encoding="utf-8").replace(f'href="{TO_ROOT}', f'href="{TO_ROOT_FROM_LATEST}')
            )
    return made
