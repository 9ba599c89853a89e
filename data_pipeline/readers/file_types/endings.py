"""Endings of file names, and the source types that read them.

A source of rows or of an archive reads what its `paths` name, whatever the ending; `assay inspect` goes by this table,
and so do the files of `text` and `package` sources, where the ending decides how a file is read.
"""

from __future__ import annotations

PLAIN = (".txt", ".md")
HTML = (".html", ".htm")
TABLE = (".csv",)
PDF = (".pdf",)
TEXT = PLAIN + HTML + PDF
"""Files of a `text` source, each a document."""
SOURCE_TYPES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".arrow": "arrow", ".feather": "arrow", ".orc": "orc", **dict.fromkeys(TEXT, "text"), ".warc": "warc",
    ".wacz": "warc", ".wet": "wet", ".xml": "mediawiki",
}  # fmt: skip
SEEKING = (".parquet", ".arrow", ".feather", ".orc", ".wacz")
"""Formats whose readers seek, so that such a file is never packed as a whole."""
COMPRESSED_WITHIN = (".parquet", ".orc", ".wacz", ".zip", ".whl", ".crate", ".tgz", ".txz", ".tbz2")
"""Formats that are compressed inside the file."""
