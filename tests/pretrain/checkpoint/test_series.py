from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from hypothesis import given
from hypothesis import strategies as st

from pretrain.checkpoint.format import LossHistory


@given(st.lists(st.tuples(st.integers(0, 50), st.integers())))
def test_every_state_stays_what_it_was(growth):
    """Grow any earlier state; each equals the plain list that it represents, at once and at the end."""
    states, plain = [LossHistory([7])], [[7]]
    for place, value in growth:
        place %= len(states)
        states.append(states[place].plus(value))
        plain.append([*plain[place], value])
    assert states == plain
    assert [state[-3:] for state in states] == [items[-3:] for items in plain]
    assert [state[-1] for state in states] == [items[-1] for items in plain]


def test_it_becomes_a_list_in_a_dictionary():
    @dataclass(frozen=True)
    class State:
        losses: LossHistory[float]

    assert type(asdict(State(LossHistory([1.0])))["losses"]) is list


def test_a_million_steps_are_quick():
    began, series = time.process_time(), LossHistory()
    for step in range(1_000_000):
        series = series.plus(step)
    assert len(series) == 1_000_000
    assert time.process_time() - began < 20
