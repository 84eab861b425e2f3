"""Gradients and weights of data parallelism, under compute or by themselves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from parlaunch.estimate.timing import estimate_time
from parlaunch.hardware.datasheet import preset
from parlaunch.model import catalog
from parlaunch.model.recipe import features_from_json
from parlaunch.planning.plan import Wishes
from parlaunch.planning.planner import plan
from parlaunch.switches.wanted import Wanted
from parlaunch_probes.bridge_child import dp_overlap
from tests.environment.test_user_overrides import as_changed
from tests.estimate.timing import make


def exposed(**features: bool) -> float:
    """Seconds of data-parallel traffic, without how far ranks are apart."""
    r, x = make.recipe(features=make.features(**features)), make.layout(16)
    return estimate_time(r, x, make.rates(nodes=2)).breakdown.dp_exposed_s


def test_each_part_is_exposed_by_itself_where_it_does_not_run_under_compute() -> None:
    both = exposed()
    reduced, gathered = exposed(gather_overlap=False), exposed(reduce_overlap=False)
    neither = exposed(reduce_overlap=False, gather_overlap=False)
    assert both < reduced < neither
    assert both < gathered < neither
    assert neither - both == pytest.approx((reduced - both) + (gathered - both), rel=0.02)


@pytest.mark.parametrize(
    ("said", "reduces", "gathers"),
    [({}, True, True), ({"no_dp_overlap": True}, False, False), ({"no_reduce_overlap": True}, False, True), ({"no_gather_overlap": True}, True, False)],
)  # fmt: skip
def test_tables_say_it_of_both_or_of_one(said: dict[str, bool], reduces: bool, gathers: bool) -> None:
    f = features_from_json(said)
    assert (f.reduce_overlap, f.gather_overlap) == (reduces, gathers)


def config(section: object, *, sharded: bool = True, reduces: bool = False, gathers: bool = False) -> SimpleNamespace:
    ddp = SimpleNamespace(use_distributed_optimizer=sharded, overlap_grad_reduce=reduces, overlap_param_gather=gathers)
    return SimpleNamespace(comm_overlap=section, ddp=ddp, optimizer=SimpleNamespace(overlap_param_gather=False))


def test_the_section_of_overlaps_decides_where_it_is_handed_on() -> None:
    silent = SimpleNamespace(overlap_grad_reduce=None, overlap_param_gather=None)
    against = SimpleNamespace(overlap_grad_reduce=False, overlap_param_gather=None)
    assert dp_overlap(config(silent), before=True) == (True, True)
    assert dp_overlap(config(against), before=True) == (False, True)
    assert dp_overlap(config(silent, sharded=False), before=True) == (False, False)
    assert dp_overlap(config(None, reduces=True), before=True) == (True, False)
    assert dp_overlap(config(silent, reduces=True, gathers=True), before=False) == (True, True)


def test_recipes_for_fine_tuning_have_neither_and_a_users_keys_are_heard() -> None:
    tuned = catalog.recipe("qwen3_8b_sft_config")
    assert (tuned.features.reduce_overlap, tuned.features.gather_overlap) == (False, False)
    assert as_changed(tuned, "ddp.overlap_grad_reduce=True").features.reduce_overlap
    trained = catalog.recipe("qwen3_8b_pretrain_config")
    assert (trained.features.reduce_overlap, trained.features.gather_overlap) == (True, True)
    assert not as_changed(trained, "ddp.overlap_param_gather=False").features.gather_overlap


def chosen(name: str, *fixed: tuple[str, str]) -> dict[str, str]:
    wishes = Wishes(evidence=False, switches=Wanted(auto=True, fixed=fixed))
    made = plan(preset("dgx-h100", 2), catalog.recipe(name), wishes)
    return {s.name: s.value for s in made.switches}


def test_it_is_turned_on_where_it_gains_and_nothing_could_wait_for_ever() -> None:
    assert chosen("qwen3_8b_sft_config")["dp_overlap"] == "on"
    assert "dp_overlap" not in chosen("qwen3_8b_sft_config", ("dp_overlap", "off"))
    assert "dp_overlap" not in chosen("qwen3_8b_pretrain_config")  # it is on
    # Without images in a batch an encoder has no gradients.
    assert "dp_overlap" not in chosen("qwen3_vl_8b_sft_config")
