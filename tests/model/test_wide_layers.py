"""Layers and modules that stay in 16 bits, or have a format of their own, where a recipe has the others in 8 or 4."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from typing import Any

import pytest

from parlaunch.environment.user_overrides import with_precision
from parlaunch.errors import UsageError
from parlaunch.estimate.memory import estimate_memory
from parlaunch.estimate.timing import estimate_time
from parlaunch.hardware.datasheet import preset
from parlaunch.model import catalog
from parlaunch.model.parameters import split_layers
from parlaunch.model.precision import BRIDGE_NAMES, short_name, switched
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Wishes
from parlaunch.planning.planner import plan
from parlaunch.rules import violations
from tests.conftest import HANGS_S, bridge_python
from tests.environment.test_user_overrides import as_changed
from tests.estimate.timing import make

ALL = 32
"""Layers of `make.dense`."""


def ends(precision: str, first: int, last: int, **features: Any) -> Recipe:
    return make.recipe(precision=precision, features=make.features(bf16_ends=(first, last), **features))


IMPORTABLE = "from parlaunch_launch.cpu.bridge_runner import importable; importable()\n"
"""Megatron without a GPU."""


def asked(code: str) -> Any:
    done = subprocess.run(
        [bridge_python(), "-W", "ignore", "-c", IMPORTABLE + code], capture_output=True, text=True, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


PRESETS = """
import json
from megatron.bridge.training.mixed_precision import MIXED_PRECISION_RECIPES, get_mixed_precision_config
from types import SimpleNamespace
from parlaunch_probes.bridge_child import precision, wide_ends
made = {name: get_mixed_precision_config(name) for name in MIXED_PRECISION_RECIPES}
print(json.dumps({name: [precision(SimpleNamespace(mixed_precision=c)), {
    "grad_reduce_fp32": bool(c.grad_reduce_in_fp32), "fp8_param_gather": bool(c.fp8_param_gather),
    "fp4_param_gather": bool(c.fp4_param_gather), "fp8_attention": False, "bf16_ends": wide_ends(c),
}] for name, c in made.items()}))
"""


@pytest.mark.bridge
def test_every_mixed_precision_of_bridge_is_known_by_its_name() -> None:
    found = asked(PRESETS)
    assert set(BRIDGE_NAMES.values()) <= {name.replace("-", "_") for name in found}
    for name, (precision, features) in found.items():
        features["bf16_ends"] = tuple(features["bf16_ends"])
        if short_name(name) == "nvfp4":
            # Weights in FP4 alone are a setting of later releases.
            features["fp4_param_gather"] = switched(name)["fp4_param_gather"]
        assert (short_name(name), switched(name)) == (precision, features), name


CORE = """
import json
from types import SimpleNamespace
from megatron.core.fp8_utils import is_first_last_bf16_layer
of = lambda on: SimpleNamespace(first_last_layers_bf16=on, num_layers_at_start_in_bf16=2, num_layers_at_end_in_bf16=3, num_layers=32)
print(json.dumps([[is_first_last_bf16_layer(of(on), i) for i in range(32)] for on in (True, False)]))
"""


@pytest.mark.bridge
def test_the_layers_are_those_of_megatron_core() -> None:
    on, off = asked(CORE)
    for pp, vp in ((1, None), (4, 2)):
        chunks = split_layers(make.dense(), pp, vp, None, (2, 3))
        assert [kind.wide for chunk in chunks for kind in chunk] == on
        assert [kind.wide for chunk in split_layers(make.dense(), pp, vp) for kind in chunk] == off


FORMATS = """
import json
from megatron.core.quantization.quant_config import RecipeConfig
from parlaunch_probes.bridge_child import module_formats
made = RecipeConfig.from_config_dict({
    "configs": {
        "eight": {"transformer_engine_config_type": "TEQuantizationParams", "training_recipe": {"fp8_quantization_recipe": "mxfp8"}},
        "four": {"transformer_engine_config_type": "TEQuantizationParams", "training_recipe": {"fp4_quantization_recipe": "nvfp4"}},
        "wide": {"transformer_engine_config_type": "TEQuantizationParams", "training_recipe": {}},
    },
    "matchers": {
        name: {"config": config, "type": "glob", "pattern": pattern, "enabled": enabled}
        for name, config, pattern, enabled in (
            ("a", "wide", "*.linear_qkv", True), ("b", "wide", "*mlp.fc[12]_latent_proj", True), ("c", "wide", "mtp.*", True),
            ("d", "eight", "*mixer.out_proj", True), ("e", "four", "*mixer.*", True), ("f", "wide", "*.linear_fc1", False),
        )
    },
})
print(json.dumps([module_formats(made), module_formats(None)]))
"""


@pytest.mark.bridge
def test_formats_of_single_modules_are_read_from_the_quantisation_recipe() -> None:
    said, nothing = asked(FORMATS)
    assert said == {
        "linear_qkv": "bf16", "fc1_latent_proj": "bf16", "fc2_latent_proj": "bf16", "mtp": "bf16", "out_proj": "fp8mx", "in_proj": "nvfp4",
    }  # fmt: skip
    assert nothing == {}


# --- Time and memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp8cs", "fp8sc", "fp8mx", "nvfp4"])
def test_layers_in_16_bits_take_the_time_of_those_and_the_others_theirs(precision: str) -> None:
    machine = make.rates("dgx-h100" if precision in ("fp8cs", "fp8sc") else "gb200-nvl72")
    x = make.layout(tp=2)

    def layers(r: Recipe) -> float:
        return estimate_time(r, x, machine).breakdown.compute_s

    none, some, every = (layers(ends(precision, first, last)) for first, last in ((0, 0), (3, 5), (ALL, 0)))
    assert none < some < every
    assert some == pytest.approx(none + (every - none) * 8 / ALL, rel=1e-6)
    assert every == pytest.approx(layers(make.recipe(precision="bf16")), rel=1e-9)


def test_delayed_scaling_has_no_such_layers() -> None:
    assert estimate_time(ends("fp8ds", 4, 4), make.layout(), make.rates()) == estimate_time(
        ends("fp8ds", 0, 0), make.layout(), make.rates()
    )


@pytest.mark.parametrize("precision", ["fp8cs", "fp8mx", "nvfp4"])
@pytest.mark.parametrize("arch", [None, "Qwen/Qwen3-30B-A3B"])
def test_layers_in_16_bits_hold_what_those_hold(precision: str, arch: str | None) -> None:
    machine = make.rates("gb200-nvl72", 2)
    x = make.layout(ep=8 if arch else 1)
    narrow = make.recipe(
        arch, precision=precision, features=make.features(fp8_param_gather=True, fp4_param_gather=True)
    )
    count = len(narrow.architecture.layers())

    def held(first: int) -> tuple[int, int]:
        r = replace(narrow, features=replace(narrow.features, bf16_ends=(first, 0)))
        m = estimate_memory(r, x, machine)
        return m.weights, m.activations

    wide = estimate_memory(replace(narrow, precision="bf16", features=make.features()), x, machine)
    none, half, every = held(0), held(count // 2), held(count)
    assert every == (wide.weights, wide.activations)
    for a, b, c in zip(none, half, every, strict=True):
        assert b == pytest.approx((a + c) / 2, rel=0.01)


def test_modules_have_the_time_of_their_own_format() -> None:
    machine, x = make.rates("gb200-nvl72"), make.layout(tp=2)

    def seconds(**formats: str) -> float:
        r = make.recipe(precision="nvfp4", features=make.features(module_formats=tuple(sorted(formats.items()))))
        return estimate_time(r, x, machine).breakdown.compute_s

    names = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
    plain, wide = seconds(), estimate_time(make.recipe(), x, machine).breakdown.compute_s
    singly = [seconds(**{name: "bf16"}) - plain for name in names]
    assert min(singly) > 0
    assert sum(singly) == pytest.approx(wide - plain, rel=0.02)
    assert plain < seconds(linear_fc1="fp8mx") < seconds(linear_fc1="bf16")


def test_multi_token_prediction_is_in_the_format_that_the_recipe_gives_it() -> None:
    known = catalog.recipe("nemotron_3_super_pretrain_64gpu_gb200_nvfp4_config")
    assert dict(known.features.module_formats)["mtp"] == "bf16"
    assert known.features.bf16_ends == (0, 14)
    others = tuple(pair for pair in known.features.module_formats if pair[0] != "mtp")
    machine, x = make.rates("gb200-nvl72", 16), make.layout(64, tp=2, ep=64, global_batch_size=512)
    narrow = replace(known, features=replace(known.features, module_formats=others))
    assert estimate_time(narrow, x, machine).iteration_time_s < estimate_time(known, x, machine).iteration_time_s


def test_modules_keep_their_format_whatever_precision_is_asked_for() -> None:
    known = catalog.recipe("deepseek_v4_flash_pretrain_mxfp8_config")
    asked_for = with_precision(known, "bf16")
    assert set(dict(asked_for.features.module_formats).values()) == {"fp8mx"}
    made = plan(preset("gb300-nvl72", 16), asked_for, Wishes(evidence=False))
    assert any("model.quant_recipe has modules in fp8mx" in sentence for sentence in made.warnings)


# --- The rule, and a user's keys --------------------------------------------------------------------------------------


def test_no_more_layers_stay_in_16_bits_than_a_stage_holds() -> None:
    machine = make.rates()

    def names(r: Recipe, pp: int) -> set[str]:
        return {rule.id for rule, _ in violations(make.layout(pp=pp), r, machine)}

    four = ends("fp8cs", 0, 8)
    assert "pp-bf16-ends" not in names(four, 4)
    assert "pp-bf16-ends" in names(four, 8)
    assert "pp-bf16-ends" not in names(replace(four, precision="bf16"), 8)
    assert "pp-bf16-ends" not in names(replace(four, precision="nvfp4"), 8)  # Megatron asks in FP8 only


START, END = (f"mixed_precision.num_layers_at_{where}_in_bf16" for where in ("start", "end"))
ON = "mixed_precision.first_last_layers_bf16"


def test_a_precision_by_option_or_by_name_brings_its_layers() -> None:
    llama = catalog.recipe("llama3_8b_pretrain_config")
    assert llama.features.wide_ends("bf16") == (0, 0)
    named = as_changed(llama, "mixed_precision=bf16_with_fp8_current_scaling_mixed")
    assert named.features.wide_ends(named.precision) == (1, 1)
    without = as_changed(llama, "mixed_precision=bf16_with_fp8_current_scaling_mixed", f"{ON}=False")
    assert without.features.bf16_ends == (0, 0)
    more = as_changed(llama, "mixed_precision=bf16_with_fp8_current_scaling_mixed", f"{END}=3")
    assert more.features.bf16_ends == (1, 3)


def test_a_recipe_with_them_off_has_those_of_its_preset_ready() -> None:
    perf = catalog.recipe("llama3_8b_pretrain_8gpu_h100_fp8cs_config")
    assert perf.features.bf16_ends == (0, 0)
    assert as_changed(perf, f"{ON}=True").features.bf16_ends == (1, 1)
    assert as_changed(perf, f"{ON}=True", f"{START}=2").features.bf16_ends == (2, 1)
    assert as_changed(perf, f"{START}=2").features.bf16_ends == (0, 0)  # the switch is off
    with pytest.raises(UsageError, match="is not a whole number"):
        as_changed(perf, f"{ON}=True", f"{END}=few")


def test_plans_leave_as_many_layers_to_every_stage() -> None:
    known = catalog.recipe("nemotronh_47b_pretrain_config")
    assert (known.precision, known.features.bf16_ends) == ("fp8cs", (2, 2))
    made = plan(preset("dgx-h100", 4), known, Wishes(evidence=False))
    assert made.chosen.layout.pp <= len(known.architecture.layers()) // 2
