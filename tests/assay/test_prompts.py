"""Prompts of the command line and of files."""

import os

import pytest

from assay.cli.main import main
from assay.cli.model_commands import before_stop, prompts_of
from governance.errors import ConfigError, MissingInput


def test_prompts_are_words_then_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one two\n\n  three\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "one\\ntwo", "id": 1}\n\n{"prompt": ""}\n')
    assert prompts_of(["x", ""], tmp_path / "a.txt") == ["x", "", "one two", "  three"]
    assert prompts_of([], tmp_path / "b.jsonl") == ["one\ntwo", ""]


def test_blank_lines_stay_where_lines_correspond(tmp_path):
    """Line n of the output is the translation of line n of the file."""
    (tmp_path / "a.txt").write_text("one\n\n \ntwo\n")
    assert prompts_of([], tmp_path / "a.txt", "--file", blank=True) == ["one", "", " ", "two"]
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ConfigError, match=r"no prompt \(.*/empty\.txt holds none\): .* with --file FILE"):
        prompts_of([], tmp_path / "empty.txt", "--file", blank=True)
    with pytest.raises(MissingInput, match=r"--file .*none.txt: cannot be read"):
        prompts_of([], tmp_path / "none.txt", "--file", blank=True)


def test_a_byte_order_mark_is_no_text_and_an_ending_has_no_case(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\n", encoding="utf-8")
    (tmp_path / "b.JSONL").write_text('\ufeff{"prompt": "\\ud83e\\uddea"}\n', encoding="utf-8")
    assert prompts_of([], tmp_path / "a.txt") == ["one"]
    assert prompts_of([], tmp_path / "b.JSONL") == ["\U0001f9ea"]


def test_a_nucleus_without_a_draw_is_a_warning(project, capsys):
    words = ["generate", str(project / "run.toml"), "last", "x", "--top-p", "0.9"]
    assert main(words) == 66
    assert "--top-p 0.9 has no effect at temperature 0" in capsys.readouterr().err
    assert main([*words, "--temperature", "0.5"]) == 66
    assert "has no effect" not in capsys.readouterr().err


def test_a_text_is_cut_at_its_first_stop():
    assert before_stop("a b<|im_end|>\nb", ["<|im_end|>", "\n"]) == "a b"
    assert before_stop("a b<|im_end|>\nb", ["\n", "b"]) == "a "
    assert before_stop("a b", ["c"]) == before_stop("a b", []) == "a b"


def test_files_without_prompts_are_refused_with_their_line(tmp_path):
    with pytest.raises(ConfigError, match=r"no prompt: give texts"):
        prompts_of([], None)
    with pytest.raises(MissingInput, match=r"none.txt: cannot be read"):
        prompts_of([], tmp_path / "none.txt")
    for line in ('{"text": "b"}', '{"prompt": 3}', "[1]", "{", "[" * 200_000):
        (tmp_path / "odd.jsonl").write_text(f'{{"prompt": "a"}}\n{line}\n')
        with pytest.raises(ConfigError, match=r'odd.jsonl, line 2: has no text "prompt"; write'):
            prompts_of([], tmp_path / "odd.jsonl")
    (tmp_path / "half.jsonl").write_text('{"prompt": "a"}\n{"prompt": "\\ud800 x"}\n')
    with pytest.raises(ConfigError, match=r"half.jsonl, line 2: has half of a surrogate pair"):
        prompts_of([], tmp_path / "half.jsonl")
    with pytest.raises(ConfigError, match=r"prompt 2: is not UTF-8"):
        prompts_of(["a", os.fsdecode(b"caf\xe9")], None)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match=r"latin.txt: is not UTF-8"):
        prompts_of([], tmp_path / "latin.txt")
