"""The impact of a document is not read from documents that were altered."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.cli.main import main
from governance.manifest import describe, read_manifest, write_manifest

ASKED = "https://a.example/page/9"


@pytest.mark.parametrize(
    ("pattern", "column", "resealed", "words"),
    [
        ("ingest/*/documents/*.parquet", "url", False, "its manifest states"),
        ("ingest/*/documents/*.parquet", "url", True, "is not the manifest that the journal states"),
        ("clean/*/removed/*.parquet", "reason", False, "its manifest states"),
    ],
)
def test_an_impact_is_not_read_from_other_documents(project, capsys, pattern, column, resealed, words):
    """An altered address hides a document from who asks by URL; an altered reason says something else of it."""
    rows = [json.loads(line) for line in (project / "a.jsonl").read_text().splitlines()]
    rows[9]["text"] = "too short"
    lines = (json.dumps({**row, "url": f"https://a.example/page/{number}"}) for number, row in enumerate(rows))
    (project / "a.jsonl").write_text("".join(f"{line}\n" for line in lines))
    text = (project / "run.toml").read_text()
    (project / "run.toml").write_text(text.replace('licence = "CC0-1.0"', 'licence = "CC0-1.0"\nurl_field = "url"'))
    root = project / "root"
    assert main(["data", "prepare", str(project / "run.toml"), "--root", str(root)]) == 0
    asked = ["governance", "impact", ASKED, "--root", str(root)]
    capsys.readouterr()
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert "removed by clean for too_few_words" in shown
    assert "no signature was verified" in shown
    for path in root.glob(pattern):
        table = pq.read_table(path, partitioning=None)
        place = table.column_names.index(column)
        pq.write_table(table.set_column(place, column, pa.array(["https://c.example/"] * len(table))), path)
    if resealed:
        [manifest] = root.glob("ingest/*/manifest.json")
        made = read_manifest(manifest)
        listed = tuple(describe(root / one.path, root) for one in made.outputs)
        write_manifest(made.model_copy(update={"outputs": listed}), root)
    assert main(asked) == 65
    assert words in capsys.readouterr().err
