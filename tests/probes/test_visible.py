"""CUDA_VISIBLE_DEVICES is read as the CUDA driver reads it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlaunch_probes.visible import Candidate, resolve

A, B, C, D = (
    "GPU-aaaaaaaa-0000-4000-8000-000000000000",
    "GPU-aaaaaaab-0000-4000-8000-000000000001",  # shares seven digits with A
    "GPU-bbbbbbbb-0000-4000-8000-000000000002",
    "GPU-cccccccc-0000-4000-8000-000000000003",
)
M1, M2 = "MIG-11111111-0000-5000-8000-000000000001", "MIG-11111111-0000-5000-8000-000000000002"
FOUR = [Candidate(u, "H100", f"0000:0{n}:00.0") for n, u in enumerate((A, B, C, D))]
SLICED = [Candidate(A, "H100", "0000:00:00.0", ((M1, 1, 0), (M2, 7, 0))), *FOUR[1:]]
HOLLOW = [Candidate(A, "H100", "0000:00:00.0", ()), *FOUR[1:]]


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (None, [A, B, C, D]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("none", []),
        ("void", []),
        ("0", [A]),
        ("2,0", [C, A]),
        ("3,2,1,0", [D, C, B, A]),
        ("0,2,-1,1", [A, C]),
        ("0,9,1", [A]),
        ("9", []),
        ("0,0", []),
        ("1,2,1", []),
        ("0,9,0", [A]),  # the list ended before the repetition
        ("1gpu2,2ampere", [B, C]),
        ("0, 1", [A, B]),
        ("0,,1", [A]),
        (",0", []),
        ("0,", [A]),
        ("+1", [B]),
        ("01", [B]),
        ("0x1", [A]),
        ("4294967296", []),
        ("٣", []),  # a digit, but not of strtol's
        (C, [C]),
        (f"{D},{C}", [D, C]),
        (f"{D},{D}", []),
        ("GPU-b", [C]),
        ("GPU-", []),
        ("GPU-aaaaaaa", []),
        ("GPU-aaaaaaaa", [A]),
        ("GPU-zz", []),
        (f"{C},GPU-b", []),
        (f"{C},0", [C]),
        ("0,GPU-b", [A]),
        ("gpu-b", []),
        ("GPU-BBBBBBBB", []),
        ("MIG-11111111", []),
    ],
)
def test_a_list_shows_what_cuda_would_show(value: str | None, want: list[str]) -> None:
    assert list(resolve(value, FOUR).devices) == want


@pytest.mark.parametrize(
    ("value", "gpus", "want"),
    [
        (M2, SLICED, [M2]),
        (f"{M1},{M2}", SLICED, [M1]),
        (f"{M2},{M1}", SLICED, [M2]),
        (f"MIG-{A}/7/0", SLICED, [M2]),
        (f"MIG-{A}/3/0", SLICED, []),
        ("MIG-GPU-aaaaaaaa/1/0", SLICED, [M1]),
        ("MIG-1111", SLICED, []),
        ("0", SLICED, [M1]),
        ("1,0", SLICED, [M1]),
        ("1,2", SLICED, [B, C]),
        (A, SLICED, [M1]),
        (None, SLICED, [M1]),
        (None, HOLLOW, [B, C, D]),
        ("0,1", HOLLOW, [B]),
        ("0", HOLLOW, []),
    ],
)
def test_mig_devices_are_seen_one_at_a_time(value: str | None, gpus: list[Candidate], want: list[str]) -> None:
    assert list(resolve(value, gpus).devices) == want


def test_every_oddity_is_told() -> None:
    for value, words in [
        ("0,0", "names a GPU twice: CUDA shows none at all"),
        ("0,9", "'9' ends the list: it names none of the 4 GPUs here"),
        ("0,-1,2", "'-1' ends the list: -1 stands for no GPU"),
        ("0, 1", "space around '1'"),
        ("1x", "'1x' is read as 1"),
        ("GPU-aaaaaaa", "'GPU-aaaaaaa' is the start of 2 UUIDs"),
        ("0,GPU-b", "'GPU-b' ends the list (the list is of ordinals)"),
        ("", "it is set to the empty string: no GPU is visible"),
    ]:
        assert any(words in note for note in resolve(value, FOUR).notes), (value, resolve(value, FOUR).notes)
    assert resolve("0,1,2,3", FOUR).notes == ()
    assert resolve(None, FOUR).notes == ()


def test_ordinals_of_mixed_models_are_exact_only_in_bus_order() -> None:
    mixed = [Candidate(A, "A4000", "0000:20:00.0"), Candidate(B, "A100", "0000:01:00.0"), *FOUR[2:]]
    assert not resolve("0", mixed).exact
    assert resolve("0", mixed, "PCI_BUS_ID") == resolve(B, mixed)
    assert resolve(A, mixed).exact
    assert resolve(None, mixed).exact


@settings(max_examples=150)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["0", "1", "3", "-1", "", " 2", "GPU-", A, "GPU-b", M1, "MIG-", "x"]), st.text(max_size=5)
        ),
        max_size=6,
    ),
    st.sampled_from([None, "PCI_BUS_ID", "FASTEST_FIRST"]),
    st.sampled_from([FOUR, SLICED, HOLLOW, FOUR[:1], []]),
)
def test_whatever_is_set_shows_known_devices_each_once(
    entries: list[str], order: str | None, gpus: list[Candidate]
) -> None:
    seen = resolve(",".join(entries), gpus, order)
    known = {g.uuid for g in gpus} | {m for g in gpus for m, _, _ in g.mig or ()}
    assert set(seen.devices) <= known
    assert len(set(seen.devices)) == len(seen.devices)
    assert len([d for d in seen.devices if d.startswith("MIG-")]) in (0, len(seen.devices), 1)
