"""Reasons that a receipt names for a document that was read and not trained on."""

import pyarrow.parquet as pq

from assay.config import load_run
from assay.pipeline import corpus
from assay.receipts.receipt_requests import _removals, read_request
from governance.stage import Runtime


def test_a_document_that_the_mixture_left_out_is_named_as_removed(project):
    runtime = Runtime(project / "root")
    made = corpus(load_run(project / "run.toml", ["data.mix.total_bytes=9000"]), runtime)
    [plan], [file] = made["mix"].files("plan", runtime.root), made["redact"].files("documents", runtime.root)
    copies = dict(zip(pq.read_table(file)["id"].to_pylist(), pq.read_table(plan)["copies"].to_pylist(), strict=True))
    left_out = [name for name, count in copies.items() if not count]
    assert left_out
    for name, removed in ((left_out[0], ["mix: mix_quota"]), (left_out[-1], ["mix: mix_quota"]), ("a.jsonl#999", [])):
        assert list(_removals(read_request(name), made["encode"], runtime.root)) == removed
