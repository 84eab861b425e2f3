"""KEY=VALUE of the Core runner: Hydra's values, Bridge's sections, and refusals that name the nearest key."""

from __future__ import annotations

from typing import Any

import pytest

from parlaunch.errors import UsageError
from parlaunch_launch.cpu.settings import read, value_of

KNOWN = {"model": ("num_layers", "recompute_modules"), "train": ("train_iters", "precision")}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None), ("True", True), ("false", False), ("8", 8), ("1e-3", 0.001), ("silu", "silu"), ("'a b'", "a b"),
        ("[core_attn,mlp]", ["core_attn", "mlp"]), ("[1,0]", [1, 0]), ("[]", []), ("p2p", "p2p"),
    ],
)  # fmt: skip
def test_values_are_read_as_hydra_writes_them(text: str, value: Any) -> None:
    assert value_of(text) == value


def test_the_last_of_a_repeated_key_counts_and_a_plus_is_hydra_s() -> None:
    sections, unused = read(["model.num_layers=2", "+model.num_layers=4", "train.train_iters=3"], KNOWN)
    assert sections == {"model": {"num_layers": 4}, "train": {"train_iters": 3}}
    assert unused == []


def test_sections_that_only_bridge_has_are_read_past_and_said() -> None:
    sections, unused = read(["checkpoint.save=x", "checkpoint.load=y", "logger.log_interval=1"], KNOWN)
    assert sections == {"model": {}, "train": {}}
    assert [sentence.split(":")[0] for sentence in unused] == ["checkpoint.*", "logger.*"]


def test_mixed_precision_becomes_the_precision() -> None:
    assert read(["mixed_precision=bf16_mixed"], KNOWN)[0]["train"] == {"precision": "bf16"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.num_layer=2", "model has no field 'num_layer'"),
        ("modle.num_layers=2", "there is no section 'modle'"),
        ("model.num_layers", "is no KEY=VALUE override"),
        ("mixed_precision=bf16_with_fp8_current_scaling_mixed", "does not train on a CPU"),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint(override: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read([override], KNOWN)
    assert caught.value.hint
