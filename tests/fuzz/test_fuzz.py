"""Every input that fuzzing found, and some new ones, is read or refused with a PipelineError."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from governance.errors import ManifestError, PipelineError
from governance.manifest import read_manifest
from tests.fuzz.__main__ import search, search_guided
from tests.fuzz.guided import mutator
from tests.fuzz.kept import FOUND
from tests.fuzz.targets import Target, changed, explained, targets

TARGETS = targets()
KNOWN = sorted(FOUND.glob("*/*"))


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("path", KNOWN, ids=[f"{path.parent.name}-{path.name}" for path in KNOWN])
def test_found_inputs_are_explained(path, tmp_path):
    explained(TARGETS[path.parent.name], path.read_bytes(), tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_right_inputs_are_read(name, tmp_path):
    for seed in TARGETS[name].seeds if name != "config" else TARGETS[name].seeds[:1]:
        assert explained(TARGETS[name], seed, tmp_path)


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ("config", "html")])  # seconds to start
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, (1 << 64) - 1))
def test_changed_inputs_are_explained(name, tmp_path, number):
    explained(TARGETS[name], changed(TARGETS[name], random.Random(number)), tmp_path)


def test_an_unexplained_exception_is_found_and_its_input_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.fuzz.kept.FOUND", tmp_path / "found")

    def run(data, folder):
        if b"\x00" in data:
            raise KeyError("null")
        raise PipelineError("no")

    done, read, found = search("odd", Target(run, [b"some text" * 9]), 400, 0, seed=1)
    assert (done, read) == (400, 0)
    [(place, kept)] = found.items()
    assert place.startswith("KeyError at test_fuzz.py:")
    assert b"\x00" in Path(kept).read_bytes()
    with pytest.raises(KeyError):
        explained(Target(run, [b""]), Path(kept).read_bytes(), tmp_path)


def test_guided_changes_keep_json_whole_and_leave_half_of_other_inputs_to_the_library():
    values = mutator(TARGETS["signed_waiver"], lambda data, most: pytest.fail("of bytes"))
    for seed in range(200):
        json.loads(values(b"" if seed % 2 else TARGETS["signed_waiver"].seeds[0], 1 << 16, seed))
    by_library = []
    of_bytes = mutator(TARGETS["jsonl"], lambda data, most: by_library.append(data) or data[:most])
    given = b'{"text": "none of the seeds"}'
    made = [of_bytes(given, 20, seed) for seed in range(200)]
    assert 60 < len(by_library) < 140
    assert max(map(len, made)) <= 20
    assert len(set(made)) > 60, "the others are changed here, from the input itself"
    assert sum(b"text" in one for one in made) > 150


def test_guided_search_reads_its_cases():
    pytest.importorskip("atheris", reason="atheris is not installed: pip install 'assay-pretrain[fuzz]'")
    done, read, found = search_guided("manifest", 300, 0, seed=1)
    assert (done, found) == (300, {})
    assert 0 < read < 300


@pytest.mark.parametrize("odd", ['"\\ud800"', "NaN", "1e999", "[" * 600 + "]" * 600])
def test_a_manifest_without_a_canonical_form_was_altered(odd, tmp_path):
    [seed] = TARGETS["manifest"].seeds
    values = json.loads(seed)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**values, "stats": "ODD"}).replace('"ODD"', odd))
    with pytest.raises(ManifestError, match="was altered since it was written"):
        read_manifest(path)
