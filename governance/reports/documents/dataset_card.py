"""Card of a corpus on the hub: YAML block and datasheet."""

from __future__ import annotations

from governance.reports.documents.datasheet import datasheet
from governance.reports.documents.evidence import Evidence

_LICENCES = {
    "0bsd", "agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc", "cc-by-2.0",
    "cc-by-3.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc0-1.0", "gpl-2.0", "gpl-3.0", "isc", "lgpl-3.0", "mit",
    "mpl-2.0", "odbl", "odc-by", "pddl", "unlicense", "wtfpl",
}  # fmt: skip
"""Identifiers of licences that the hub knows; any other is `other` there."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"))  # fmt: skip
SHARDS = "data/*.parquet"


def dataset_card(evidence: Evidence) -> str:
    """The card of the documents in `data/*.parquet` next to it."""
    from huggingface_hub import DatasetCardData

    count = evidence.at("summary.documents_kept") or 0
    names = sorted({name.lower() if name.lower() in _LICENCES else "other" for name in evidence.licences})
    data = DatasetCardData(
        language=evidence.languages or None,
        license=names or None,
        task_categories=["text-generation"],
        size_categories=[next((words for limit, words in _SIZES if count < limit), "n>1B")],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": SHARDS}]}],
        tags=["pretraining", "assay"],
    )
    return f"---\n{data.to_yaml()}\n---\n\n{datasheet(evidence)}"
