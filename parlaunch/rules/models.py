"""What Megatron Bridge's models themselves refuse, or cannot do: their providers, model files and forward steps.

By the model's family (`Architecture.model_type`), read from Bridge 0.6.2 and 0.7.0.
"""

from __future__ import annotations

from collections.abc import Mapping

from parlaunch.hardware.rates import Rates
from parlaunch.model.activations import attends_in_core
from parlaunch.model.layout import Layout
from parlaunch.model.parameters import chunk_sizes
from parlaunch.model.recipe import Recipe
from parlaunch.rules.rule import Chapter
from parlaunch.rules.switches import parts_experts

MODELS = Chapter()

NO_CONTEXT: Mapping[str, str] = {
    "gemma3": "its attention takes a mask for images, and no kernel takes that mask in pieces",
    "gemma2": "its attention caps the logits, in a kernel of its own",
}
"""Families whose provider or attention raises with CP above 1, and why."""

UNSLICED = ("flux", "glm4v_moe", "qwen2_5_vl", "qwen2_audio", "step3p7")
"""Families for which neither the forward step nor the model gives a CP rank its part of the sequence."""


@MODELS.rule(
    "cp-refused", "Gemma 2, Gemma 3 with vision, dense Gemma 4, EXAONE 4 -> CP == 1",
    "bridge/models/gemma_vl/gemma3_vl_provider.py:66, bridge/models/gemma/gemma2_provider.py:122, "
    "megatron/core/transformer/dot_product_attention.py:61",
)  # fmt: skip
def context_refused(x: Layout, r: Recipe, _m: Rates) -> str | None:
    why = NO_CONTEXT.get(r.architecture.model_type or "")
    if attends_in_core(r.architecture):
        why = "its attention is Megatron Core's own"
    return None if x.cp == 1 or why is None else f"{r.model} takes no context parallelism, and CP is {x.cp}: {why}"


@MODELS.rule(
    "cp-unsliced", "step or model slices the sequence for CP, or CP == 1",
    "bridge/training/vlm_step.py:161, bridge/training/audio_lm_step.py:176, bridge/models/stepfun/step37_flickr8k_step.py, "
    "bridge/diffusion/models/flux/flux_step.py",
)  # fmt: skip
def context_unsliced(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if x.cp == 1 or r.architecture.model_type not in UNSLICED:
        return None
    return f"CP {x.cp} would give every rank the whole sequence: Megatron Bridge's step for {r.model} does not cut it"


@MODELS.rule(
    "cp-omni", "Qwen3-Omni and CP>1 -> seq_length % (2*TP*CP) == 0", "bridge/models/qwen_omni/qwen3_omni_step.py:188"
)
def context_omni(x: Layout, r: Recipe, _m: Rates) -> str | None:
    unit = 2 * x.tp * x.cp
    if x.cp == 1 or r.architecture.model_type != "qwen3_omni_moe" or r.seq_length % unit == 0:
        return None
    return f"{r.model} with CP {x.cp} takes sequences in multiples of 2·TP·CP = {unit}, and {r.seq_length} is none"


UNSTAGED: Mapping[str, str] = {
    "qwen3_vl": "bridge/models/qwen_vl/qwen3_vl_provider.py", "qwen3_vl_moe": "bridge/models/qwen_vl/qwen3_vl_provider.py",
    "wan": "bridge/diffusion/models/wan/wan_provider.py",
}  # fmt: skip
"""Families whose provider does not say which virtual stage it builds, and its file: Megatron Core then stops."""


@MODELS.rule(
    "vp-unstaged", "Qwen3-VL, WAN -> VP is None",
    "bridge/models/qwen_vl/qwen3_vl_provider.py:155, bridge/diffusion/models/wan/wan_provider.py:138, "
    "megatron/core/transformer/transformer_layer.py:191",
)  # fmt: skip
def interleaving_refused(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if (x.vp or 1) == 1 or r.architecture.model_type not in UNSTAGED:
        return None
    return f"{r.model} takes no interleaving, and VP is {x.vp}: Megatron Bridge builds its layers without naming the virtual stage"


@MODELS.rule("pp-flux", "FLUX -> PP == 1", "bridge/diffusion/models/flux/flux_provider.py:135")
def whole(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if x.pp == 1 or r.architecture.model_type != "flux":
        return None
    return f"{r.model} is built whole on every pipeline stage, and PP is {x.pp}: Megatron Bridge's provider does not cut it"


DEEPSTACK, DEEPSTACKED = 3, ("qwen3_omni_moe", "qwen3_vl", "qwen3_vl_moe")
"""Families whose vision encoder feeds the first so many decoder layers beside the embedding."""


@MODELS.rule(
    "pp-deepstack", "Qwen3-VL, Qwen3-Omni -> 3 decoder layers or more in the first chunk of the pipeline",
    "bridge/models/qwen_vl/modelling_qwen3_vl/model.py:360, bridge/models/qwen_vl/modelling_qwen3_vl/transformer_block.py:678",
)  # fmt: skip
def deepstack(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if x.chunks == 1 or r.architecture.model_type not in DEEPSTACKED:
        return None
    first = chunk_sizes(r.architecture, x)[0]
    if first >= DEEPSTACK:
        return None
    return (
        f"{r.model} feeds images to its first {DEEPSTACK} layers, which stand together with the embedding, and PP {x.pp} with "
        f"VP {x.vp or 1} has {first} there"
    )


@MODELS.rule(
    "pack-llava", "Nemotron VL with packed sequences -> PP == 1 and CP == 1", "bridge/training/llava_step.py:94"
)
def packed_vision(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if r.architecture.model_type != "NemotronH_Nano_VL_V2" or r.packing is None or x.pp == x.cp == 1:
        return None
    return f"{r.model} takes packed sequences with PP 1 and CP 1 only, not PP {x.pp} and CP {x.cp}"


@MODELS.rule("pp-gemma4", "dense Gemma 4 -> PP == 1", "bridge/models/gemma/gemma4_provider.py:199")
def stages_refused(x: Layout, r: Recipe, _m: Rates) -> str | None:
    a = r.architecture
    if x.pp == 1 or a.model_type != "gemma4" or a.num_moe_experts:
        return None
    return f"{r.model} borrows keys and values across layers and takes one pipeline stage, not PP {x.pp}"


@MODELS.rule(
    "rc-gemma4", "Gemma 4 with experts -> no recomputing of layernorm", "bridge/models/gemma/gemma4_provider.py:65"
)
def recompute_refused(x: Layout, r: Recipe, _m: Rates) -> str | None:
    again = x.recompute
    if not parts_experts(r.architecture) or again.granularity != "selective" or "layernorm" not in again.modules:
        return None
    return f"{r.model} normalizes for its router, shared and routed experts apart, and cannot recompute layernorm"


@MODELS.rule(
    "rc-exaone45", "EXAONE 4.5 and full, uniform recomputation -> layers of its vision encoder % num_layers == 0",
    "bridge/models/exaone/exaone45/modelling_exaone45/transformer_block.py:156",
)  # fmt: skip
def recompute_units(x: Layout, r: Recipe, _m: Rates) -> str | None:
    a, again = r.architecture, x.recompute
    layers = a.encoder.num_layers if a.encoder else None
    if a.model_type != "exaone4_5" or not layers or again.granularity != "full" or again.method != "uniform":
        return None
    if layers % (again.num_layers or 1) == 0:
        return None
    return f"the {layers} layers of the vision encoder of {r.model} recompute in units of one size, and {again.num_layers} does not divide them"
