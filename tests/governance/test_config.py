"""A wrong file gives an error that names the fix; the hashed form is unique."""

import json
import os
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from governance.config import Section, apply_override, canonical_json, load_config, read_toml, validate
from governance.errors import ConfigError, near_path


class Inner(Section):
    steps: int = Field(default=10, gt=0)
    rate: float = 0.1
    names: tuple[str, ...] = ()
    kind: Literal["a", "b"] = "a"


class Outer(Section):
    train: Inner = Inner()
    title: str


def load(tmp_path, text, overrides=()):
    path = tmp_path / "run.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    values = read_toml(path)
    for override in overrides:
        apply_override(values, override)
    return validate(values, Outer, str(path))


GOOD = 'title = "x"\n[train]\nsteps = 3\nrate = 3e-4\n'


def test_loads_and_overrides_in_toml_grammar(tmp_path):
    config = load(tmp_path, GOOD, ["train.steps=20", 'train.names=["a", "b"]', 'title="y"', "train.rate=1"])
    assert (config.train.steps, config.train.names, config.title, config.train.rate) == (20, ("a", "b"), "y", 1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "stpes = 4\n", ["train.stpes", "unknown key", "did you mean 'steps'"]),
        (GOOD + "qqq = 4\n", ["train.qqq", "unknown key", "choose one of steps, rate"]),
        (GOOD.replace("3\n", '"3"\n', 1), ["train.steps", '"3"', "is not a whole number; write 3"]),
        (GOOD.replace("3\n", "1e3\n", 1), ["train.steps = 1000.0: is not a whole number; write 1000"]),
        (GOOD.replace("3e-4", '"3e-4"'), ['train.rate = "3e-4": is not a number; write 0.0003, without quotes']),
        (GOOD.replace("3\n", "0\n", 1), ["train.steps = 0", "must be above 0"]),
        (GOOD.replace("3e-4", "nan"), ["train.rate: is not finite"]),
        ("[train]\n", ["title", "missing"]),
        (GOOD + 'kind = "c"\n', ["train.kind", '"c"', "'a' or 'b'"]),
        ("title = \n", ["not valid TOML", "line 1"]),
        (b'title = "\xff"', ["not UTF-8"]),
        (GOOD + "names = [1]\n", ["train.names[entry 1] = 1", "is not text; put it in quotes"]),
    ],
)
def test_each_fault_names_field_value_and_fix(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert all(word in str(caught.value) for word in [*words, "run.toml"])
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps", "needs the form section.field=VALUE"),
        ("title=plain", "Text needs quotes"),
        ("title.x=1", "not a section. Set the whole value"),
        ("train.stepz=1", "did you mean 'steps'"),
    ],
)
def test_wrong_overrides(tmp_path, override, words):
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, GOOD, [override])


def test_a_folder_in_place_of_a_file_names_the_files_in_it(tmp_path):
    with pytest.raises(ConfigError, match=r"is a folder\. Name a TOML file, or write a run's: assay init"):
        read_toml(tmp_path)
    (tmp_path / "mine.toml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"is a folder\. Name a file in it: .*/mine\.toml"):
        read_toml(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.toml", Outer)


def test_sections_are_frozen(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path, GOOD).title = "z"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=_JSON)
def test_canonical_json_round_trips_and_ignores_order(value):
    form = canonical_json(value)
    assert canonical_json(json.loads(form)) == form
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == form


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, {1, 2}, object(), b"x"])
def test_canonical_json_refuses_what_it_cannot_fix(value):
    with pytest.raises(TypeError):
        canonical_json({"x": value} if not isinstance(value, dict) else value)


def test_a_folder_that_cannot_be_searched_gives_no_hint(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").touch()
    assert near_path(tmp_path / "mien.toml") == f" Did you mean {tmp_path / 'mine.toml'}?"
    with monkeypatch.context() as patch:  # more names than are compared
        patch.setattr(os, "listdir", lambda folder: [f"mine{number}.toml" for number in range(20_001)])
        assert near_path(tmp_path / "mien.toml") == ""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    assert near_path(tmp_path / "mien.toml") == ""
    with pytest.raises(ConfigError, match=r"mien\.toml: no such file"):
        read_toml(tmp_path / "mien.toml")
