"""Python interface: the artifacts of a root, for notebooks and scripts.

    run = assay.open_run("runs/mine")
    run.report()["summary"]["train_tokens"]
    run.table("redact").to_pandas()
    run.token_shards()[0].tokens

It makes and changes nothing and reads no file whole to verify it: `assay governance verify` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.tokens.token_shards import SUFFIX, TokenShard
from governance.errors import MissingInput
from governance.manifest import FILE_NAME, Manifest, read_manifest
from governance.reports.recompute import newest_report

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class OpenedRun:
    """A root, and one artifact of each stage."""

    root: Path
    artifacts: Mapping[str, Manifest]
    """Stage -> manifest: those of the newest report, else the newest of each stage."""

    def report(self) -> dict[str, Any]:
        """The newest report.json.

        Raises:
            MissingInput: there is no report.
        """
        path = self.root / newest_report(self.root).folder / "report.json"
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def files(self, stage: str, role: str = "documents") -> list[str]:
        """Paths of the files of a role, in order.

        Raises:
            MissingInput: there is no such stage or role; the message has those that there are.
        """
        if stage not in self.artifacts:
            raise MissingInput(f"{self.root}: no artifact of {stage!r}; there are {', '.join(self.artifacts)}.")
        manifest = self.artifacts[stage]
        found = [str(path) for path in manifest.files(role, self.root)]
        if not found:
            roles = sorted({Path(output.path).relative_to(manifest.folder).parts[0] for output in manifest.outputs})
            raise MissingInput(f"{self.root / manifest.folder}: has no {role!r}; it has {', '.join(roles)}.")
        return found

    def table(self, stage: str, role: str = "documents") -> pa.Table:
        """The Parquet files of a role as one Arrow table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        return pa.concat_tables(pq.read_table(path) for path in self.files(stage, role))

    def token_shards(self, split: str = "train") -> list[TokenShard]:
        """The memory-mapped token shards of "train" or "validation"."""
        return [TokenShard.open(Path(path)) for path in self.files("encode", split) if path.endswith(SUFFIX)]


def open_run(root: str | Path) -> OpenedRun:
    """Open a run's root, such as `runs/mine`.

    Raises:
        MissingInput: it holds no artifact.
    """
    root = Path(root)
    found = [read_manifest(path) for path in sorted(root.glob(f"*/*/{FILE_NAME}"))]
    if not found:
        raise MissingInput(f"{root}: holds no artifact. Give the root of a run (default: runs/<name of its file>).")
    found.sort(key=lambda manifest: str(manifest.run.get("finished")))
    artifacts = {manifest.stage: manifest for manifest in found}
    if "report" in artifacts:
        artifacts |= {item.stage: read_manifest(root / item.path) for item in artifacts["report"].inputs}
    return OpenedRun(root, artifacts)
