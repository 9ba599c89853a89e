"""A follower gives every whole line once, with the number that `read_lines` gives it, however the file is cut."""

from __future__ import annotations

import json
import math
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from governance.files import append_line, read_lines
from pretrain.metrics import tail as follower_module
from pretrain.metrics.tail import Follower

TORN = '{"event": "st'


@settings(max_examples=40)
@given(
    parts=st.lists(
        st.one_of(st.integers(0, 10**9), st.just(TORN), st.text(max_size=30).map("x{}".format)), max_size=30
    ),
    cut=st.integers(0, 30),
    chunk=st.sampled_from([1, 7, 1 << 20]),
)
def test_every_line_comes_once_with_its_number(tmp_path_factory, parts, cut, chunk):
    path = tmp_path_factory.mktemp("record") / "metrics.jsonl"

    def write(part):
        if part == TORN:
            with path.open("a") as handle:
                handle.write(part)  # left by a kill; the next line closes it
        else:
            append_line(path, json.dumps({"value": part}))

    follower, found = Follower(path), []
    before, follower_module._CHUNK_BYTES = follower_module._CHUNK_BYTES, chunk
    try:
        for part in parts[:cut]:
            write(part)
        thread = threading.Thread(target=lambda: found.extend(follower.lines()))
        thread.start()
        for part in parts[cut:]:
            write(part)
            follower.more()
        follower.end()
        thread.join(300)
        assert not thread.is_alive()
    finally:
        follower_module._CHUNK_BYTES = before
    wanted = [line for line in read_lines(path)]
    assert [number for number, _ in found] == list(range(len(wanted)))
    assert [line for _, line in found] == wanted


def test_what_is_not_finite_is_a_number_again(tmp_path):
    append_line(
        tmp_path / "r", json.dumps({"loss": "nan", "by": {"a": "-inf", "b": "inf"}, "text": "nano", "none": None})
    )
    follower = Follower(tmp_path / "r")
    follower.end()
    [(number, line)] = follower.lines()
    assert number == 0
    assert math.isnan(line.pop("loss"))
    assert line == {"by": {"a": -math.inf, "b": math.inf}, "text": "nano", "none": None}
