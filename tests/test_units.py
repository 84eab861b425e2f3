"""Numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.units import count, gib, percent, rate, seconds


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (gib(80 * 2**30), "80.0 GiB"), (gib(1.5 * 2**20), "2 MiB"), (gib(0), "0 MiB"), (gib(-3 * 2**30), "-3.0 GiB"),
        (seconds(12.345), "12.3 s"), (seconds(1.2), "1.20 s"), (seconds(0.0123), "12.3 ms"), (seconds(123.4), "123 s"),
        (seconds(0.00005), "50 µs"), (percent(0.081), "8.1%"), (percent(0.43), "43%"), (percent(0), "0.0%"),
        (count(1_235_814_400), "1.24 B"), (count(671e9), "671 B"), (count(12), "12"), (rate(50e9), "50 GB/s"),
    ],
)  # fmt: skip
def test_sizes_times_and_shares_carry_three_digits_and_their_unit(made: str, text: str) -> None:
    assert made == text


@given(st.floats(1e-7, 1e6))
def test_a_duration_read_back_is_right_within_a_per_cent(time: float) -> None:
    number, unit = seconds(time).split()
    back = float(number) * {"s": 1, "ms": 1e-3, "µs": 1e-6}[unit]
    assert back == pytest.approx(time, rel=0.01, abs=0.6e-6)
