"""A plan as JSON and back: nothing is lost, whatever is in it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.errors import UsageError
from parlaunch.estimate.values import Breakdown, Estimate, Memory
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import rates_of
from parlaunch.model.catalog import all_recipes
from parlaunch.model.layout import Layout, Recompute, selective
from parlaunch.planning.plan import Candidate, Plan, Refusal, Variable, plan_from_json, plan_to_json

RECIPES = all_recipes()
sizes = st.integers(1, 64)
lengths = st.integers(0, 2**45)
numbers = st.floats(0, 1e15, allow_nan=False)
words = st.text(max_size=20)
maybe = st.none() | st.integers(1, 9)

recomputes = (
    st.builds(
        Recompute,
        granularity=st.just("full"),
        method=st.none() | st.sampled_from(("block", "uniform")),
        num_layers=maybe,
    )
    | st.builds(selective, st.none() | st.lists(st.sampled_from(("mlp", "moe_act", "layernorm")), max_size=3))
    | st.just(Recompute())
)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    tp, pp, cp, dp = (draw(sizes) for _ in range(4))
    mbs, accumulated = draw(sizes), draw(sizes)
    return Layout(
        world=tp * pp * cp * dp, tp=tp, pp=pp, cp=cp, vp=draw(maybe), micro_batch_size=mbs,
        global_batch_size=mbs * dp * accumulated, recompute=draw(recomputes), fsdp=draw(st.booleans()),
        cp_comm_type=draw(st.none() | st.just("p2p")),
        layers_per_chunk=draw(st.none() | st.lists(sizes, min_size=1, max_size=4).map(tuple)),
    )  # fmt: skip


candidates = st.builds(
    Candidate,
    layout=layouts(),
    memory=st.builds(Memory, **dict.fromkeys(
        ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "runtime", "capacity", "limit", "stage", "slack"),
        lengths), error_band=numbers),
    estimate=st.builds(Estimate, **dict.fromkeys(
        ("iteration_time_s", "error_band", "tokens_per_s_per_gpu", "model_tflops_per_gpu", "mfu"), numbers),
        breakdown=st.builds(Breakdown, compute_s=numbers, pp_bubble_s=numbers, host_s=numbers)),
)  # fmt: skip
measured = st.dictionaries(st.sampled_from(("gemm_bf16", "hbm", "fabric_bus_bytes_per_s")), numbers, max_size=2)
plans = st.builds(
    Plan,
    rates=st.builds(
        replace, st.sampled_from([rates_of(preset(m, 2)) for m in ("dgx-h100", "l40s-pcie-8")]),
        measured=measured, assumed=st.lists(words, max_size=2).map(tuple),
    ),
    recipe=st.sampled_from(RECIPES),
    cluster=st.sampled_from([preset(m, n) for m, n in (("dgx-h100", 2), ("gb200-nvl72", 3), ("l40s-pcie-8", 1))]),
    chosen=candidates,
    environment=st.lists(
        st.builds(Variable, name=words, value=words, reason=words, source=words, kept=st.booleans(), warning=st.none() | words),
        max_size=2,
    ).map(tuple),
    overrides=st.lists(words, max_size=3).map(tuple),
    argv=st.lists(words, max_size=3).map(tuple),
    because=st.lists(words, max_size=2).map(tuple),
    alternatives=st.lists(candidates, max_size=2).map(tuple),
    rejected=st.lists(st.builds(Refusal, layout=layouts(), reason=words), max_size=2).map(tuple),
    warnings=st.lists(words, max_size=2).map(tuple),
    evidence=st.lists(st.fixed_dictionaries({"sentence": words}), max_size=2).map(tuple),
)  # fmt: skip


@given(plans)
def test_a_saved_plan_comes_back_as_it_was(plan: Plan) -> None:
    text = json.dumps(plan_to_json(plan, version="0"))
    assert plan_from_json(json.loads(text), where="test") == plan


def test_a_plan_saved_before_plans_carried_their_rates_gets_those_of_its_machine() -> None:
    data = plan_to_json(BASE, version="0")
    del data["rates"]
    assert plan_from_json(data, where="test") == BASE


@pytest.mark.parametrize("both", [True, False])
def test_a_plan_saved_with_one_word_for_both_overlaps_has_both_as_it_says(both: bool) -> None:
    data = plan_to_json(BASE, version="0")
    features = data["recipe"]["features"]
    del features["reduce_overlap"], features["gather_overlap"]
    features["dp_overlap"] = both
    f = plan_from_json(data, where="test").recipe.features
    assert (f.reduce_overlap, f.gather_overlap, f.dp_overlap) == (both, both, both)


def test_a_saved_plan_still_says_whether_both_overlap() -> None:
    f = replace(BASE.recipe.features, reduce_overlap=True, gather_overlap=True)
    for one, both in ((f, True), (replace(f, reduce_overlap=False), False), (replace(f, gather_overlap=False), False)):
        made = replace(BASE, recipe=replace(BASE.recipe, features=one))
        assert plan_to_json(made, version="0")["recipe"]["features"]["dp_overlap"] is both


def test_every_recipe_survives_being_saved() -> None:
    for recipe in RECIPES:
        made = replace(BASE, recipe=recipe)
        assert plan_from_json(json.loads(json.dumps(plan_to_json(made, version="0"))), where="test") == made, (
            recipe.name
        )


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": "parlaunch.plan/9"},
        {"memory": {}},
        {"layout": 3},
        {"environment": [1]},
        {"rates": {}},
        {"rates": {"product": "Abacus"}},
    ],
)
def test_a_damaged_file_is_refused_by_name(damage: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"saved\.json"):
        plan_from_json({**plan_to_json(BASE, version="0"), **damage}, where="saved.json")


BASE = Plan(
    recipe=RECIPES[0],
    cluster=preset("dgx-h100", 1),
    rates=rates_of(preset("dgx-h100", 1)),
    chosen=Candidate(
        layout=Layout(world=8, tp=2),
        memory=Memory(weights=1, gradients=1, optimizer=1, activations=1, logits=1, buffers=1, runtime=1, capacity=9, limit=8),
        estimate=Estimate(
            iteration_time_s=1.0, error_band=0.1, tokens_per_s_per_gpu=1.0, model_tflops_per_gpu=1.0, mfu=0.5,
            breakdown=Breakdown(compute_s=1.0),
        ),
    ),
)  # fmt: skip
