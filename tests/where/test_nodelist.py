"""Node lists as Slurm writes them, against examples, against a second way to expand, and against Slurm itself."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parlaunch.errors import UsageError
from parlaunch.where.nodelist import counts, hostnames, short
from tests.conftest import need


@pytest.mark.parametrize(
    ("written", "hosts"),
    [
        ("gpu01", "gpu01"),
        ("gpu[01-04,07],login1", "gpu01 gpu02 gpu03 gpu04 gpu07 login1"),
        ("n[8-11]", "n8 n9 n10 n11"),
        ("n[08-11]", "n08 n09 n10 n11"),
        ("n[098-102]", "n098 n099 n100 n101 n102"),
        ("n[177,180]", "n177 n180"),
        ("a-gpu-[004,036,012]", "a-gpu-004 a-gpu-036 a-gpu-012"),
        ("sw04-10n05", "sw04-10n05"),
        ("nid[010001-010003,010010]", "nid010001 nid010002 nid010003 nid010010"),
        ("r[1-2]n[1-2]", "r1n1 r1n2 r2n1 r2n2"),
        ("r1n[1-2],r2n[1-2]", "r1n1 r1n2 r2n1 r2n2"),
        ("job-0.svc,job-1.svc", "job-0.svc job-1.svc"),
        ("[1-3]", "1 2 3"),
        ("n[1-2],n[1-2]", "n1 n2 n1 n2"),
        ("a,,b", "a b"),
        ("", ""),
    ],
)
def test_lists_are_expanded_in_the_order_written(written: str, hosts: str) -> None:
    assert " ".join(hostnames(written)) == hosts


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("gpu[1-2", "its brackets do not match"),
        ("gpu1-2]", "its brackets do not match"),
        ("gpu[[1-2]]", "its brackets do not match"),
        ("n[5-3]", "the range 5-3 runs backwards"),
        ("n[a-c]", "holds something else than numbers"),
        ("n[]", "holds something else than numbers"),
        ("n[1-9999999999]", "is longer than"),
        ("gpu 01", "has a blank in it"),
        (",,", "it names no host"),
        ("a[1-300]b[1-300]", "names more than 65536 hosts"),
    ],
)
def test_what_slurm_would_refuse_is_refused(written: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        hostnames(written)
    assert words in str(caught.value)


@given(st.text(alphabet="gpu0123-[],. x", max_size=24))
def test_any_text_gives_names_or_a_usage_error(text: str) -> None:
    try:
        found = hostnames(text)
    except UsageError:
        return
    assert all(name and not set("[], ") & set(name) for name in found)


PREFIX = st.sampled_from(["gpu", "n", "cn-", "a100-", "x1000c0s0b0n", "dgx-h100-"])


@st.composite
def ranges(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A bracket and the numbers in it."""
    width, at, written, numbers = draw(st.sampled_from([0, 2, 3, 6])), draw(st.integers(0, 120)), [], []
    for _ in range(draw(st.integers(1, 4))):
        low = at + draw(st.integers(0, 3))
        high = low + draw(st.sampled_from([0, 0, 1, 4, 11]))
        at = high + 1
        written.append(f"{low:0{width}d}" if low == high else f"{low:0{width}d}-{high:0{width}d}")
        numbers += [f"{k:0{width}d}" for k in range(low, high + 1)]
    return f"[{','.join(written)}]", numbers


@st.composite
def lists(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A list and its names, made by a product instead of by parsing."""
    written, hosts = [], []
    for _ in range(draw(st.integers(1, 3))):
        words: list[tuple[str, list[str]]] = [(p := draw(PREFIX), [p])]
        for _ in range(draw(st.integers(0, 2))):
            words.append(draw(ranges()))
            words.append((mid := draw(st.sampled_from(["", "n", "-gpu"])), [mid]))
        if words[-1][0] and len(words) > 1:
            words.append(draw(ranges()))  # Slurm refuses text behind the last bracket
        written.append("".join(w for w, _ in words))
        hosts += ["".join(parts) for parts in itertools.product(*(values for _, values in words))]
    return ",".join(written), hosts


@given(lists())
def test_every_shape_is_the_product_of_its_brackets(pair: tuple[str, list[str]]) -> None:
    written, hosts = pair
    assert list(hostnames(written)) == hosts


@pytest.fixture
def slurm_conf(tmp_path: Path) -> Path:
    """The least that scontrol reads before it does anything."""
    need(shutil.which("scontrol"), "scontrol")
    path = tmp_path / "slurm.conf"
    path.write_text("ClusterName=none\nSlurmctldHost=localhost\nNodeName=n1\n")
    return path


@pytest.mark.slurm
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pair=lists())
def test_scontrol_expands_the_same_names(slurm_conf: Path, pair: tuple[str, list[str]]) -> None:
    environ = {**os.environ, "SLURM_CONF": str(slurm_conf)}
    command = ["scontrol", "show", "hostnames", pair[0]]
    asked = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    found = list(hostnames(pair[0]))
    assert sorted(asked.stdout.split()) == sorted(found)
    if all(part.count("]") < 3 for part in re.split(r",(?![^\[]*\])", pair[0])):
        assert asked.stdout.split() == found  # of three brackets scontrol turns the first faster than the second


@pytest.mark.parametrize(
    ("written", "numbers"), [("8(x2),4", [8, 8, 4]), ("3,1(x3)", [3, 1, 1, 1]), ("5,0", [5, 0]), ("1", [1])]
)
def test_counts_are_one_a_node(written: str, numbers: list[int]) -> None:
    assert list(counts(written)) == numbers


@pytest.mark.parametrize("written", ["", "x", "8(x", "8(x999999999)"])
def test_a_count_that_is_none_is_refused(written: str) -> None:
    with pytest.raises(UsageError, match="no list of counts"):
        counts(written)


def test_many_names_are_shown_as_the_first_and_how_many_more() -> None:
    assert short(("a", "b")) == "a, b"
    assert short(hostnames("n[1-32]")) == "n1, n2, n3, n4, n5 and 27 more"
