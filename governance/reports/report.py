"""Report stage: report.html for people, report.json for programs.

Promises: it computes nothing new, it reads manifests, verdict, audit, metrics and ledger, and says of each number
which; the page is one file that opens without a network and runs no script; what came from a corpus reaches it as text
only; it is made when the gate is closed too. It holds times and energies of `run` blocks, so two runs of one recipe
differ in its bytes; a report that stands for these artifacts and this verdict is found, not made again. Neither torch
nor Great Expectations is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from governance.config import Section, canonical_json
from governance.energy.ancestry import RECORD
from governance.energy.factors import Factors
from governance.files import put_in_place, sha256_bytes, write_json, write_text
from governance.manifest import KEY_LENGTH, Manifest, describe
from governance.reports.facts.report_facts import Given, facts, in_order
from governance.reports.facts.samples import Mask, mask
from governance.reports.sections.page import page
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 17


class ReportSection(Section):
    """Settings of a report."""

    name: str = ""
    """Of the run, as its page is headed: as a rule that of the root's folder."""

    verdict_sha256: str
    """The hash of the verdict's content, signer and subjects included."""
    factors: Factors = Factors()
    """What the footprint was reckoned with."""
    begun: str = Field(default="", pattern=rf"^(train/[0-9a-f]{{{KEY_LENGTH}}})?$")
    """Folder of a training that was begun and is not finished: no artifact, but its record tells of its faults."""
    begun_bytes: int = 0
    """Of that record when the report was asked for: one that has grown since makes another report."""

    @property
    def given(self) -> Given:
        """As the facts take it."""
        return Given(self.factors, self.begun, self.name)


def report(
    artifacts: Mapping[str, Manifest],
    verdict: Mapping[str, Any],
    root: Path,
    runtime: Runtime,
    rules: Mask = mask,
    factors: Factors | None = None,
    begun: str = "",
) -> Manifest:
    """Write report.html and report.json about these artifacts and this verdict.

    `<root>/report/latest.html` and `latest.json` are second names of the last one's files.

    Args:
        artifacts: stage -> manifest; `train` and any other may be missing, and the page says so.
        verdict: the signed decision's content with `key_id` and `subjects`; `{}` when none was given.
        root: the artifacts' root.
        runtime: where to write; its root is `root` as a rule.
        rules: mask personal data in examples; without them only addresses of e-mail and runs of digits are masked.
        factors: what turns energy into carbon and water (`governance.reports.facts.energy_totals.look_up`).
        begun: folder below the root of a training that was begun and is not finished; counts without `train` alone.

    Raises:
        ManifestError: a shard, the audit or the ledger cannot be read.
    """
    record = root / begun / RECORD
    begun = begun if begun and "train" not in artifacts and record.is_file() else ""
    section = ReportSection(
        name=root.resolve().name,
        verdict_sha256=sha256_bytes(canonical_json(verdict)),
        factors=factors or Factors(),
        begun=begun,
        begun_bytes=record.stat().st_size if begun else 0,
    )

    def make(folder: Path) -> Made:
        found = facts(artifacts, verdict, root, rules, section.given)
        write_json(folder / "report.json", found)
        write_text(folder / "report.html", page(found))
        files = [folder / "report.html", folder / "report.json"]
        return Made([describe(path, runtime.root) for path in files], {"artifacts": len(artifacts)})

    inputs = [manifest.as_input() for manifest in in_order(artifacts)]
    made = run_stage(Recipe("report", VERSION, section), inputs, runtime, make)
    if runtime.make:
        for suffix in (".html", ".json"):
            put_in_place(runtime.root / made.folder / f"report{suffix}", runtime.root / "report" / f"latest{suffix}")
    return made
