"""The shape of a model in Megatron's field names, and the list of its layers by kind.

Sizes are elements. What memory, time and parameter counts need of a layer is in its `LayerKind`: two layers of one
kind hold the same weights and do the same work, so models of a hundred layers have two or three kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, NamedTuple

from parlaunch.frozen import dataclass
from parlaunch.typed import misfit

MIXERS = {"M": "mamba", "G": "gated_delta_net", "*": "attention", "+": "mla", "D": "mla"}
"""Letters of `hybrid_layer_pattern` that mix tokens; `-` is a dense MLP and `E` a mixture of experts, without a mixer."""

HYBRID = (*MIXERS, "-", "E")

FUSED_ACTIVATIONS = ("gelu", "silu", "quick_gelu")
"""Activations that have a kernel with their bias, and with their gate (megatron/core/transformer/transformer_config.py:2114)."""


class LayerKind(NamedTuple):
    """What one layer is made of. A layer of a hybrid model has a mixer or an MLP, not both. A tuple: searches compare them by the
    million."""

    mixer: str | None = None  # attention | mla | csa | mamba | gated_delta_net | joint | single (diffusion)
    mlp: str | None = None  # dense | moe
    heads: int = 0  # query heads
    groups: int = 0  # key/value heads
    head_dim: int = 0
    window: int | None = None  # tokens each token sees, itself included; None: all before it
    indexer: bool = False  # sparse attention: this layer chooses the keys
    compress: int = 0  # compressed sparse attention: tokens in one compressed key; 0: sliding window only
    borrows_kv: bool = False  # keys and values are those of an earlier layer
    wide: bool = (
        False  # in 16 bits where a recipe has other layers in 8 or 4 (`parlaunch.model.parameters.split_layers`)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """The vision or audio part in front of a language model; it stands on the first pipeline stage. None: not recorded."""

    num_layers: int | None = None
    hidden_size: int | None = None
    ffn_hidden_size: int | None = None
    num_attention_heads: int | None = None
    spatial_merge_size: int | None = None
    params: int | None = None

    @property
    def activations(self) -> int:
        """Bytes a patch that a trained encoder keeps for its backward pass, counted in 16 bits as Hugging Face's vision towers run:
        inputs and outputs of two norms, queries, keys and values, the first two once more behind the rotation, attention's output,
        both sides of the activation. 0 when the sizes are not known."""
        return 2 * (self.num_layers or 0) * (10 * (self.hidden_size or 0) + 2 * (self.ffn_hidden_size or 0))

    @property
    def total_params(self) -> int:
        """As recorded, else from the sizes: attention and a plain MLP a layer. 0 when neither is known."""
        if self.params is not None:
            return self.params
        if not (self.num_layers and self.hidden_size):
            return 0
        return self.num_layers * self.hidden_size * (4 * self.hidden_size + 2 * (self.ffn_hidden_size or 0))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One model. Fields are named as in Megatron's TransformerConfig; `None`: the model has no such part."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    vocab_size: int
    kv_channels: int
    kind: str = "llm"  # llm | multimodal | diffusion
    derived: tuple[str, ...] = ()  # sizes that its provider leaves out: they follow from the others, changed ones too
    model_type: str | None = None  # its family, as config.json names it: which of Megatron Bridge's providers builds it
    gated_linear_unit: bool = False
    activation_func: str = "gelu"
    normalization: str = "RMSNorm"
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    qk_layernorm: bool = False
    post_norms: bool = False  # a second norm behind attention and MLP (Gemma)
    position_embedding_type: str = "rope"
    max_position_embeddings: int = 0
    softmax_type: str = "vanilla"  # vanilla | learnable: one sink logit a head
    share_embeddings_and_output_weights: bool = False
    make_vocab_size_divisible_by: int = 128
    final_logit_softcapping: float | None = None  # logits go through a tanh of that width (Gemma 2 and 4)
    attention_output_gate: bool = False
    head_wise_attn_gate: bool = False  # the gate has one value a head, not one a channel
    # Sliding window: `window_pattern` is 1 for a layer with a window.
    sliding_window: int | None = None
    window_size: int | None = None
    window_pattern: tuple[int, ...] | None = None
    window_attn_skip_freq: int | tuple[int | bool, ...] | None = None  # as recipes write it
    sliding_attention_heads: int | None = None  # layers with a window have their own number of heads
    global_head_dim: int | None = None  # layers without a window have their own head size …
    num_global_query_groups: int | None = None  # … and number of key/value heads
    attention_k_eq_v: bool = False
    num_kv_shared_layers: int | None = None  # the last so many layers borrow keys and values
    per_layer_embed_dim: int | None = None
    per_layer_embed_vocab_size: int | None = None
    # Mixture of experts
    num_moe_experts: int | None = None
    moe_ffn_hidden_size: int | None = None
    moe_router_topk: int = 2
    moe_shared_expert_intermediate_size: int | None = None
    moe_shared_expert_gate: bool = False
    moe_latent_size: int | None = None  # experts work in a smaller space
    moe_router_enable_expert_bias: bool = False
    moe_router_num_groups: int | None = None
    moe_router_group_topk: int | None = None
    moe_layer_pattern: tuple[int, ...] | None = None
    first_k_dense: int | None = None
    # Multi-latent attention
    multi_latent_attention: bool = False
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_head_dim: int | None = None
    qk_pos_emb_head_dim: int | None = None
    v_head_dim: int | None = None
    # Sparse attention: DeepSeek's indexer (dsa), and compressed sparse attention (csa)
    experimental_attention_variant: str | None = None  # gated_delta_net | dsa | dsv4_hybrid
    dsa_indexer_n_heads: int | None = None
    dsa_indexer_head_dim: int | None = None
    dsa_indexer_topk: int | None = None
    dsa_indexer_layers: tuple[int, ...] | None = None  # 1: the layer has an indexer of its own
    csa_compress_ratios: tuple[int, ...] | None = None
    csa_window_size: int | None = None
    o_groups: int | None = None
    o_lora_rank: int | None = None
    num_residual_streams: int | None = None
    # Gated delta net
    linear_attention_pattern: tuple[int, ...] | None = None  # 1: a linear layer
    linear_num_key_heads: int | None = None
    linear_key_head_dim: int | None = None
    linear_num_value_heads: int | None = None
    linear_value_head_dim: int | None = None
    linear_conv_kernel_dim: int = 4
    # Mamba and hybrids
    hybrid_layer_pattern: str | None = None
    mamba_num_heads: int | None = None
    mamba_head_dim: int | None = None
    mamba_state_dim: int | None = None
    mamba_num_groups: int | None = None
    # Multi-token prediction
    mtp_num_layers: int | None = None
    mtp_hybrid_override_pattern: str | None = None
    mtp_use_repeated_layer: bool = False
    # Vision and audio
    encoder: Encoder | None = None
    # Diffusion transformers
    num_joint_layers: int | None = None
    num_single_layers: int | None = None

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, f.name) for f in fields(self)))

    def __hash__(self) -> int:
        """Computed once: estimates are cached by architecture and asked for thousands of times."""
        return self._hash

    @property
    def clamped(self) -> bool:
        """Whether both halves of what a gated MLP makes are clamped in front of its activation (Bridge sets `activation_func_clamp_value`)."""
        return self.activation_func == "quick_gelu" or self.model_type == "deepseek_v4"

    @property
    def rotary(self) -> bool:
        """Whether queries and keys are rotated, in whatever way."""
        return self.position_embedding_type not in ("none", "learned_absolute")

    def with_sizes(self, sizes: Mapping[str, Any]) -> Architecture:
        """The model with other sizes, and with those that follow from them."""
        made = replace(self, **sizes)
        follow: dict[str, Any] = {
            n: rule(made) for n, rule in FOLLOWING.items() if n in self.derived and n not in sizes
        }
        # What is listed layer by layer is not cut: other lists of the model have that length too (EXAONE's `no_rope_freq`).
        listed = isinstance(made.window_attn_skip_freq, tuple)
        patterns = {
            n: p[: made.num_layers]
            for n in BY_NUMBER
            if n not in sizes and not listed and (p := getattr(made, n)) is not None
        }
        return replace(made, **follow, **patterns)

    @property
    def complete(self) -> bool:
        """False for a template whose sizes the user must give."""
        return bool(self.num_layers and self.hidden_size and self.num_attention_heads)

    @cached_property
    def _layers(self) -> tuple[LayerKind, ...]:
        if self.hybrid_layer_pattern:
            return tuple(self._hybrid(letter) for letter in _letters(self.hybrid_layer_pattern))
        if self.num_joint_layers or self.num_single_layers:
            attention = (self.num_attention_heads, self.num_query_groups, self.kv_channels)
            return (LayerKind("joint", "dense", *attention),) * (self.num_joint_layers or 0) + (
                LayerKind("single", "dense", *attention),
            ) * (self.num_single_layers or 0)
        return tuple(self._layer(i) for i in range(self.num_layers))

    def layers(self) -> tuple[LayerKind, ...]:
        """The decoder layers in order, without multi-token prediction. Its length is Megatron's `num_layers`."""
        return self._layers

    @cached_property
    def _mtp(self) -> tuple[LayerKind, ...]:
        depth = self.mtp_num_layers or 0
        if not depth or not self._layers:
            return ()
        if self.mtp_hybrid_override_pattern:
            return tuple(self._hybrid(letter) for letter in _letters(self.mtp_hybrid_override_pattern)) * depth
        return (self._layers[-1],) * depth

    def mtp_layers(self) -> tuple[LayerKind, ...]:
        """Layers of the multi-token-prediction heads; they stand behind the last decoder layer."""
        return self._mtp

    def shape(self) -> dict[str, Any]:
        """The fields as JSON values."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Encoder):
                value = {e.name: getattr(value, e.name) for e in fields(value)}
            out[f.name] = list(value) if isinstance(value, tuple) else value
        return out

    def _hybrid(self, letter: str) -> LayerKind:
        if letter in "-E":
            return LayerKind(mlp="moe" if letter == "E" else "dense")
        mixer = MIXERS[letter]
        if mixer != "attention":
            return LayerKind(mixer)
        return LayerKind(mixer, None, self.num_attention_heads, self.num_query_groups, self.kv_channels)

    def _layer(self, i: int) -> LayerKind:
        moe = self.moe_layer_pattern[i] if self.moe_layer_pattern else i >= (self.first_k_dense or 0)
        mlp = "moe" if self.num_moe_experts and moe else "dense"
        if self.linear_attention_pattern and self.linear_attention_pattern[i]:
            return LayerKind("gated_delta_net", mlp)
        window = self._window(i)
        heads, groups, dim = self.num_attention_heads, self.num_query_groups, self.kv_channels
        if window is not None and self.sliding_attention_heads:
            heads = self.sliding_attention_heads
        if window is None and self.global_head_dim:
            groups, dim = self.num_global_query_groups or groups, self.global_head_dim
        if self.csa_compress_ratios is not None:
            return LayerKind(
                "csa", mlp, heads, 1, self.v_head_dim or dim, self.csa_window_size, compress=self.csa_compress_ratios[i]
            )
        indexer = bool(self.dsa_indexer_layers and self.dsa_indexer_layers[i])
        if self.multi_latent_attention:
            return LayerKind(
                "mla", mlp, heads, heads, (self.qk_head_dim or 0) + (self.qk_pos_emb_head_dim or 0), window, indexer
            )
        borrows = i >= self.num_layers - (self.num_kv_shared_layers or 0)
        return LayerKind("attention", mlp, heads, groups, dim, window, indexer, borrows_kv=borrows)

    def _window(self, i: int) -> int | None:
        window = self.window_size or self.sliding_window
        if not window or self.csa_compress_ratios is not None:
            return None
        if self.window_pattern:
            return window if self.window_pattern[i] else None
        skip = self.window_attn_skip_freq
        if isinstance(skip, int):
            return window if (i + 1) % skip else None
        return window if skip is None or skip[i] else None


FOLLOWING: Mapping[str, Callable[[Architecture], int]] = {
    "ffn_hidden_size": lambda a: 4 * a.hidden_size,
    "kv_channels": lambda a: a.hidden_size // a.num_attention_heads,
    "num_query_groups": lambda a: a.num_attention_heads,
}
"""Sizes that Megatron makes of the others where a provider leaves them out (megatron/core/transformer/transformer_config.py:1329)."""


BY_NUMBER = ("window_pattern", "linear_attention_pattern")
"""What Megatron makes of the number of a layer and a frequency (megatron/core/transformer/utils.py:496,
core/models/gpt/experimental_attention_variant_module_specs.py:403): fewer layers have the first ones' kinds."""


LAYER_BY_LAYER = (
    "window_pattern", "window_attn_skip_freq", "moe_layer_pattern", "dsa_indexer_layers", "csa_compress_ratios",
    "linear_attention_pattern",
)  # fmt: skip


MOST_LAYERS = 10_000


def flaw(a: Architecture) -> str | None:
    """What no model's architecture has, in one that comes from a file: a value of another type, a list of too few layers."""
    if (wrong := misfit(a)) is not None:
        return wrong
    if a.num_layers > MOST_LAYERS:
        return f"{a.num_layers:,} layers, and {MOST_LAYERS:,} are the most"
    for name in () if a.hybrid_layer_pattern else LAYER_BY_LAYER:
        listed = getattr(a, name)
        if isinstance(listed, tuple) and len(listed) < a.num_layers:
            return f"{name} speaks of {len(listed)} layers, and the model has {a.num_layers}"
    return None


def _letters(pattern: str) -> str:
    """The layers of a hybrid pattern: pipeline marks and what follows `/` (multi-token prediction) are no layers."""
    return pattern.split("/", 1)[0].replace("|", "")


def _window_tokens(value: Any) -> int | None:
    """Megatron's (left, right), or a plain number, as tokens seen, the token itself included."""
    if isinstance(value, list | tuple):
        return int(value[0]) + int(value[1]) + 1
    return None if value is None else int(value)


ENCODER_NAMES = {
    "num_layers": ("num_hidden_layers", "depth", "layers", "vt_num_hidden_layers"),
    "hidden_size": (
        "embed_dim",
        "hidden_size",
        "width",
        "vt_hidden_size",
    ),  # beside embed_dim, hidden_size is the output's
    "ffn_hidden_size": ("intermediate_size", "vt_intermediate_size"),
    "num_attention_heads": ("num_attention_heads", "num_heads", "heads", "vt_num_attention_heads"),
    "spatial_merge_size": ("spatial_merge_size",),
}
"""Our name of an encoder's size, and the names vision configurations give it."""


def encoder_from_json(vision: Mapping[str, Any] | None, params: int | None = None) -> Encoder | None:
    """The encoder of a vision (or audio) configuration; None when nothing is known of one."""
    if not vision and not params:
        return None
    given = vision or {}
    sizes = {ours: next((given[n] for n in names if n in given), None) for ours, names in ENCODER_NAMES.items()}
    if sizes["ffn_hidden_size"] is None and sizes["hidden_size"] and isinstance(given.get("mlp_ratio"), int | float):
        sizes["ffn_hidden_size"] = int(sizes["hidden_size"] * given["mlp_ratio"])
    return Encoder(**sizes, params=params or None)


def architecture_from_json(data: Mapping[str, Any]) -> Architecture:
    """The architecture of an entry of `architectures.json`, of `Architecture.shape()`, or of a table of runs.

    Missing head counts and widths get Megatron's defaults: as many key/value as query heads, four times the hidden size.
    """
    names = {f.name for f in fields(Architecture)}
    flat: dict[str, Any] = dict(data)
    flat.update(flat.pop("provider", None) or {})
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in flat.items() if k in names and v is not None
    }
    if (window := _window_tokens(flat.get("window_size"))) is not None:
        given["window_size"] = window
    dsa = flat.get("dsa") or {}
    for ours, theirs in (("n_heads", "n_heads"), ("head_dim", "head_dim"), ("topk", "topk")):
        if dsa.get(theirs) is not None:
            given[f"dsa_indexer_{ours}"] = dsa[theirs]
    if dsa.get("layers"):
        given["dsa_indexer_layers"] = tuple(dsa["layers"])
    if numbers := flat.get("lightning_indexer_layers"):
        given["dsa_indexer_layers"] = tuple(int(i in numbers) for i in range(given["num_layers"]))
        given["dsa_indexer_n_heads"], given["dsa_indexer_head_dim"] = flat["index_n_heads"], flat["index_head_dim"]
    if "csa_compress_ratios" in given:  # the entries behind the last layer belong to multi-token prediction
        given["csa_compress_ratios"] = given["csa_compress_ratios"][: given["num_layers"]]
    if isinstance(encoder := flat.get("encoder"), Mapping):
        given["encoder"] = Encoder(**encoder)
    elif flat.get("multimodal"):
        given["encoder"] = encoder_from_json(
            flat.get("vision") or flat.get("audio"), (flat.get("params") or {}).get("hf_meta_vision_audio")
        )
    heads, hidden = given.get("num_attention_heads") or 0, given.get("hidden_size") or 0
    sizes: dict[str, Any] = {
        "num_layers": 0, "hidden_size": 0, "ffn_hidden_size": 4 * hidden, "num_attention_heads": 0, "num_query_groups": heads,
        "kv_channels": hidden // heads if heads else 0, "vocab_size": 0,
    }  # fmt: skip
    return Architecture(**sizes | given)
