from __future__ import annotations

import pytest

from governance.files import held
from pretrain.engine import extensions as extension
from pretrain.engine.extensions import build, extension_folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(extension, "_BUILD", "import os; os.makedirs(os.environ['TORCH_EXTENSIONS_DIR'] + '/made')")


def test_it_builds_in_the_folder(tmp_path):
    assert build(tmp_path / "new", 60.0)
    assert (tmp_path / "new" / "made").is_dir()


def test_a_lock_of_a_dead_builder_is_dropped(tmp_path, caplog):
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    assert build(tmp_path, 60.0)
    assert not lock.exists()
    assert str(lock) in caplog.text


def test_a_living_builder_is_waited_for_and_not_for_ever(tmp_path, caplog):
    with held(tmp_path / "assay.lock", "process 7"):
        assert not build(tmp_path, 0.3)
    assert "another process (process 7)" in caplog.text
    assert build(tmp_path, 60.0)


def test_a_build_that_takes_too_long_is_given_up(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(extension, "_BUILD", "import time; time.sleep(60)")
    assert not build(tmp_path, 1.0)
    assert "extension_build_seconds" in caplog.text


def test_a_failed_build_says_why(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(extension, "_BUILD", "raise OSError('no compiler here')")
    assert not build(tmp_path, 60.0)
    assert "no compiler here" in caplog.text


def test_the_folder_belongs_to_this_torch_and_python(monkeypatch):
    import torch

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    assert torch.__version__ in extension_folder().name
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/elsewhere")
    assert str(extension_folder()) == "/elsewhere"
