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
from tests.fuzz.__main__ import search
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


@pytest.mark.parametrize("odd", ['"\\ud800"', "NaN", "1e999", "[" * 600 + "]" * 600])
def test_a_manifest_without_a_canonical_form_was_altered(odd, tmp_path):
    [seed] = TARGETS["manifest"].seeds
    values = json.loads(seed)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**values, "stats": "ODD"}).replace('"ODD"', odd))
    with pytest.raises(ManifestError, match="was altered since it was written"):
        read_manifest(path)
