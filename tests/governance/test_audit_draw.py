"""The draw of an audit: its closed form against simulation, and a fixed answer that anybody can compute."""

import hashlib
import json
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.recomputation.audit_draw import amount_of, chance_of_finding, drawn, public_value, surely_found


def test_the_value_and_the_draw_are_plain_sha256():
    head, training, nonce = "7:" + "ab" * 32, "train/0123456789abcdef", "00" * 32
    text = json.dumps(["assay training audit 1", head, training, nonce], separators=(",", ":"))
    value = hashlib.sha256(text.encode()).hexdigest()
    assert public_value(head, training, nonce) == value
    order = sorted(range(9), key=lambda number: hashlib.sha256(f"{value} {number}".encode()).hexdigest())
    assert drawn(value, 9, 4) == sorted(order[:4])
    assert public_value(head, training, "x") != value != public_value("8:" + head[2:], training, nonce)


@given(st.integers(1, 400), st.floats(1e-4, 1.0))
def test_a_share_takes_at_least_itself_and_one(count, share):
    amount = amount_of(count, share)
    assert 1 <= amount <= count
    assert amount >= share * count - 1e-6
    assert amount == 1 or amount - 1 < share * count
    assert amount_of(100, 0.07) == 7  # whose product with 100 is above 7 in floats


@settings(max_examples=20)
@given(st.integers(2, 30), st.data())
def test_faults_are_found_as_often_as_the_closed_form_says(count, data):
    amount = data.draw(st.integers(1, count))
    faulty = data.draw(st.integers(1, count))
    seed = data.draw(st.integers(0, 1 << 30))
    wrong = set(np.random.default_rng(seed).choice(count, faulty, replace=False).tolist())
    chance = chance_of_finding(count, amount, faulty)
    draws = 400
    found = sum(bool(wrong & set(drawn(f"{seed} {number}", count, amount))) for number in range(draws))
    error = (chance * (1 - chance) / draws) ** 0.5
    assert abs(found / draws - chance) <= 5 * error + 1e-12  # once in 2 million examples otherwise
    missed = Fraction(1)
    for place in range(amount):
        missed *= Fraction(max(count - faulty - place, 0), count - place)
    assert abs(chance - float(1 - missed)) < 1e-12
    least = surely_found(count, amount)
    assert chance_of_finding(count, amount, least) >= 0.95
    assert least == 1 or chance_of_finding(count, amount, least - 1) < 0.95
    assert abs(chance_of_finding(count, amount) - amount / count) < 1e-12
