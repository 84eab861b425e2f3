"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.units import amount, count, duration, gib, percent, rate, seconds, size, speed


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (gib(80 * 2**30), "80.0 GiB"), (gib(1.5 * 2**20), "2 MiB"), (gib(0), "0 MiB"), (gib(-3 * 2**30), "-3.0 GiB"),
        (seconds(12.345), "12.3 s"), (seconds(1.2), "1.20 s"), (seconds(0.0123), "12.3 ms"), (seconds(123.4), "123 s"),
        (seconds(0.00005), "50 µs"), (percent(0.081), "8.1%"), (percent(0.43), "43%"), (percent(0), "0.0%"),
        (count(1_235_814_400), "1.24 B"), (count(671e9), "671 B"), (count(12), "12"), (count(999_960_000), "1 B"), (count(999_400_000), "999 M"), (count(999.6), "1 K"),
        (duration(5.62), "5.62 s"), (duration(49), "49 s"), (duration(3500), "58 min"), (duration(48_240), "13 h"),
        (duration(41.24 * 86400), "41.2 days"), (rate(50e9), "50 GB/s"),
    ],
)  # fmt: skip
def test_sizes_times_and_shares_carry_three_digits_and_their_unit(made: str, text: str) -> None:
    assert made == text


@given(st.floats(1e-7, 1e6))
def test_a_duration_read_back_is_right_within_a_per_cent(time: float) -> None:
    number, unit = seconds(time).split()
    back = float(number) * {"s": 1, "ms": 1e-3, "µs": 1e-6}[unit]
    assert back == pytest.approx(time, rel=0.01, abs=0.6e-6)


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (amount("15T"), 15e12), (amount("300b"), 300e9), (amount("1e12"), 1e12), (amount("2_000,000"), 2e6), (amount("1.5 K"), 1500.0),
        (size("141GiB"), 141 * 2**30), (size("80GB"), 80e9), (size("512 mib"), 2**29), (size("7B"), 7.0),
        (speed("25GB/s"), 25e9), (speed("400Gb/s"), 50e9), (speed("400Gbit/s"), 50e9), (speed("400Gbps"), 50e9),
        (speed("1GiB/s"), 2**30),
    ],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(read: float, value: float) -> None:
    assert read == value


@pytest.mark.parametrize("read", [amount, size, speed])
@pytest.mark.parametrize("text", ["", "x", "-3", "0", "12 cows", "1..2", "nan", "inf", "GB", "1e"])
def test_what_is_no_quantity_is_refused(read: Callable[[str], float], text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        read(text)


@pytest.mark.parametrize("read", [size, speed])
def test_a_number_without_its_unit_is_no_size(read: Callable[[str], float]) -> None:
    with pytest.raises(ValueError, match="write"):
        read("25")
