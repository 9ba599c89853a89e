"""The process that compiles the last kernels of an inspection ahead."""

import json
from multiprocessing import active_children

from assay.inspect import kernels_ahead
from assay.inspect.inspection import inspect_path
from governance import first_use


def test_a_later_inspection_compiles_none_of_them_again(tmp_path):
    from data_pipeline.kernels.pii_candidates import _scan
    from governance.kernels.mentions import _count

    kernels_ahead.compile_last()
    known = [set(_count.signatures), set(_scan.signatures)]
    assert all(known)
    lines = [{"text": f"She and {n} other nurses are kind. Write to nurse{n}@clinic.org. " * 9} for n in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"text": "short"}]))
    inspect_path(tmp_path)
    assert [set(_count.signatures), set(_scan.signatures)] == known


def test_it_starts_with_the_first_compilation_and_ends_with_the_block(monkeypatch):
    monkeypatch.setattr(kernels_ahead.os, "sched_getaffinity", lambda process: {0, 1})
    before = set(active_children())
    with kernels_ahead.compiled_ahead():
        assert set(active_children()) == before
        first_use.say_compiling()
        first_use.say_compiling()
        assert len(set(active_children()) - before) == 1
    assert set(active_children()) == before
    first_use.say_compiling()
    assert set(active_children()) == before


def test_none_starts_on_one_core(monkeypatch):
    monkeypatch.setattr(kernels_ahead.os, "sched_getaffinity", lambda process: {0})
    before = set(active_children())
    with kernels_ahead.compiled_ahead():
        first_use.say_compiling()
        assert set(active_children()) == before
