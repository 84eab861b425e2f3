"""What becomes of a user's KEY=VALUE: planned with, known to leave the plan alone, or neither; and keys that Bridge lacks.

Against the recipe's own configuration where Megatron Bridge is installed, else against the list of its fields that ships
here (`data/bridge_fields.json`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from parlaunch.data import load
from parlaunch.environment.override_grammar import value
from parlaunch.environment.user_overrides import planned_keys
from parlaunch.environment.user_switches import SHARDED
from parlaunch.errors import UsageError
from parlaunch.model.recipe import Recipe
from parlaunch.model.sections import HANDED, OVERLAP, PRECISION, SHARDED_DDP, heard, places

HARMLESS: Mapping[str, str] = {
    "checkpoint": "*",
    "dataset": "add_extra_token_to_sequence allow_ambiguous_pad_tokens blend* cache_dir caption_key data_path data_sharding dataloader_load "
    "dataloader_save dataset_dict dataset_name dataset_root dataset_sampling dataset_subset defer_npy_index_mmap delete_raw do_* "
    "download_mode drop_last* eod_mask_loss fast_cache_load full_validation global_data_keys hf_data_files hf_dataset* hf_filter_lambda* "
    "hf_kwargs hf_output_root hf_processor_path hf_rewrite hf_test_dataset* hf_tokenizer_path hf_validation_* image_folder "
    "max_train_samples memmap_workers mid_level_dataset_surplus mmap_bin_files mock multiple_validation_sets "
    "num_dataset_builder_threads num_train_samples num_val_workers num_workers object_storage_cache_path path path_to_cache "
    "per_dataset_sequences_path persistent_workers pin_memory preprocessing* process_example_fn processor_paths prompt random_seed repo_id "
    "rewrite sample_count seed shuffle_buffer_size skip_test source* special_token_ids split* test_* text_column text_prompt "
    "token_dtype_code tokenizer tokenizer_path train_data_path train_split trust_remote_code use_train_split_for_val val_* valid_* "
    "validation_source* *_token *_token_id",
    "dist": "distributed_timeout_* external_gpu_device_mapping flight_recorder_* local_rank",
    "ft": "*",
    "logger": "*",
    "model": "*_token_id config_logger_dir embedding_init_* extra_checkpoint_metadata flash_decode generation_config hf_model_id "
    "inference_* init_method* init_model_with_meta_device layernorm_epsilon moe_aux_loss_coeff moe_router_bias_update_rate "
    "moe_router_pre_softmax moe_router_score_function moe_router_topk_scaling_factor moe_z_loss_coeff mtp_loss_scaling_factor "
    "original_max_position_embeddings output_layer_init_method perform_initialization rope_scaling* rotary_base* rotary_percent "
    "rotary_scaling_factor seq_len_interpolation_factor softmax_scale timers use_cpu_initialization yarn_*",
    "nvrx_straggler": "*",
    "optimizer": "adam_* adaptive_muon_beta2 adaptive_muon_eps apply_wd_to_qk_layernorm clip_grad config_logger_dir decoupled_* "
    "grad_norm_skip_threshold hysteresis initial_loss_scale lion_* log_num_zeros_in_grad loss_scale_window lr min_loss_scale min_lr "
    "muon_coefficient_type muon_extra_scale_factor muon_momentum muon_nesterov muon_scale_mode soap_shampoo_beta timers weight_decay",
    "peft": "alpha lora_?_init_method params_to_save",
    "profiling": "*",
    "rerun_state_machine": "error_injection_* spiky_loss_factor",
    "rng": "data_parallel_random_init inference_rng_tracker seed",
    "scheduler": "*",
    "straggler": "*",
    "tensor_inspect": "allow_custom_feature_dirs feature_dirs init_training_step log_dir",
    "tokenizer": "*",
    "train": "eval_* exit_* gpu_sniff_test_interval iterations_to_skip manual_gc_eval num_epochs skip_train train_iters train_samples",
    "validation": "*",
}  # fmt: skip
"""Fields that change neither time nor memory of the iterations that a plan speaks of, by section: logs, checkpoints, rates of
learning, data and where they lie."""

NOT_SO: Mapping[str, str] = {
    "checkpoint": "ckpt_format use_mp_args_from_checkpoint_args use_checkpoint_args save_activations_interval save_?grads_interval "
    "save_params_interval",
    "logger": "barrier_with_L1_time log_max_attention_logit moe_routing_trace_* timing_log_level",
    "tokenizer": "*vocab* tensor_model_parallel_size",
    "validation": "eval_global_batch_size eval_micro_batch_size",
}  # fmt: skip
"""Those of them that do: they wait for the GPU, dump tensors, or change a size."""

IMPLEMENTATION = "model.transformer_impl"
"""What Megatron's conditions go by, and none of the layers that Bridge builds (bridge/models/gpt_provider.py:120)."""

OVERRULED = (
    r"(model|optimizer|ddp)\.(fp16|bf16|fp32|params_dtype|autocast_(dtype|enabled)|grad_reduce_in_fp32|first_last_layers_bf16"
    r"|num_layers_at_(start|end)_in_bf16|fp8|fp8_(recipe|margin|amax_.*|wgrad|dot_product_attention|multi_head_attention|param|param_gather)"
    r"|fp4|fp4_(recipe|param|param_gather)|loss_scale|reuse_grad_buf_for_mxfp8_param_ag)"
)
"""Keys that mixed precision sets last, whatever the command line says of them (bridge/training/mixed_precision.py:138)."""

TWINS: Mapping[str, str] = {f"{PRECISION}.{kind}_param": f"{PRECISION}.{kind}_param_gather" for kind in ("fp8", "fp4")}
"""Keys whose value is that of another one, which Bridge sets behind them (bridge/training/mixed_precision.py:82)."""


PRESET = "--precision takes another format"
"""What to try for a part of a preset of mixed precision."""


def not_planned_for(keys: Iterable[str], recipe: Recipe) -> tuple[str, ...]:
    """Those of the keys that a plan neither takes into account nor can leave aside, in order, each once."""
    planned = planned_keys(recipe)

    def acts(key: str) -> bool:
        return not harmless(key) and set_last_by(key, recipe) is None and not _unasked(key, recipe)

    return tuple(dict.fromkeys(k for k in keys if k not in planned and acts(k)))


def harmless(key: str) -> bool:
    """Whether the key is known to leave time, memory and layout alone."""
    section, _, name = key.partition(".")
    return _among(name, HARMLESS.get(section, "")) and not _among(name, NOT_SO.get(section, ""))


def _among(field: str, words: str) -> bool:
    """Whether the field, or the one that it is a part of, is one of the words; `*` stands for anything."""
    return bool(field) and any(fnmatchcase(field, word) or fnmatchcase(field, f"{word}.*") for word in words.split())


def overruled(keys: Iterable[str], recipe: Recipe) -> tuple[str, ...]:
    """One sentence for each key that Bridge overwrites: it is heard under another name or not at all."""
    sentences = []
    for key in dict.fromkeys(keys):
        if key in TWINS:
            sentences.append(f"{key} does nothing: {TWINS[key]} is set behind it; say that")
        elif section := set_last_by(key, recipe):
            sentences.append(f"{key} does nothing: {section} sets it last; {_heard_at(section, key, recipe)}")
        elif key == IMPLEMENTATION and recipe.features.transformer_impl == "local":
            sentences.append(
                f"{key}=local builds no other layers: Megatron Bridge's are Transformer Engine's all the same"
            )
        elif _unasked(key, recipe):
            say = " and ".join(places(key, recipe))
            sentences.append(f"{key} does nothing where {SHARDED_DDP} is off; say {say}, or {SHARDED_DDP}=True")
    return tuple(sentences)


def _heard_at(section: str, key: str, recipe: Recipe) -> str:
    """What to say in place of a key that a section sets last: a preset's name has no parts."""
    if section in recipe.bare:
        return PRESET
    return f"say {section}.{key.partition('.')[2]}{', or --precision' if section == PRECISION else ''}"


def left_on(given: Mapping[str, str], recipe: Recipe) -> tuple[str, ...]:
    """A sentence where a user takes back one of the two switches of a distributed optimizer, which Bridge turns on where either is
    (bridge/training/config.py: _validate_and_sync_distributed_optimizer_settings)."""
    off = [key for key in SHARDED if key in given and value(given[key]) in (False, 0)]
    if len(off) != 1 or not recipe.features.distributed_optimizer:
        return ()
    other = next(key for key in SHARDED if key != off[0])
    return (f"{off[0]}={given[off[0]]} does nothing: {other} turns it on again; add {other}=False",)


def _unasked(key: str, recipe: Recipe) -> bool:
    """Whether the section is there and takes the value, and hands it to nobody."""
    return OVERLAP not in recipe.bare and not heard(key, recipe)


def set_last_by(key: str, recipe: Recipe) -> str | None:
    """The section or key whose value stands, whatever the command line says under this key."""
    if key in TWINS:
        return TWINS[key]
    if re.fullmatch(OVERRULED, key):
        return PRECISION
    place, _, field = key.partition(".")
    handed = place in HANDED.get(field, ()) and heard(f"{OVERLAP}.{field}", recipe)
    return OVERLAP if handed else None


def shipped_keys(version: str | None = None) -> frozenset[str]:
    """The keys that Bridge has in that version, as far as it is listed; None: in any."""
    table = load("bridge_fields.json")
    if version not in table["versions"]:
        version = None
    return frozenset(k for k, has in table["keys"].items() if version is None or not has or version in has)


def check_keys(pairs: Sequence[str], recipe: Recipe, own: Collection[str] | None = None) -> None:
    """Raise `UsageError` for the first KEY=VALUE whose key Megatron Bridge does not have, with the nearest that it has, or that is
    of a section that the recipe leaves empty.

    `own` are the keys of the very configuration, sections and dotted; None: not known, every key of any version and model is
    let pass. What `++` adds is the user's own affair.
    """
    if not pairs:
        return
    keys = shipped_keys() if own is None else own
    where = (
        "Megatron Bridge's configuration"
        if own is None
        else "this recipe's configuration in the installed Megatron Bridge"
    )
    for pair in pairs:
        key = pair.partition("=")[0]
        if key.startswith(("++", "~")):
            continue
        bare = key.lstrip("+")
        if bare.partition(".")[0] in recipe.bare and "." in bare:
            raise _nothing_there(pair, bare, recipe)
        there = _has(keys, bare)
        if bare.startswith("peft.") and recipe.task != "peft" and (own is None or not there):
            raise UsageError(
                f"{pair}: {recipe.name} trains all weights, and has no adapters",
                hint="leave it out, or choose a recipe with peft in its name: `parlaunch recipes --task peft` lists them",
            )
        if key.startswith("+") and there and own is not None:
            raise UsageError(f"{pair}: {bare} is there already, and + only adds", hint=f"write {pair.lstrip('+')}")
        if not there and not key.startswith("+"):
            raise UsageError(f"{pair}: {where} has no {bare}", hint=_nearest(keys, bare))


def _nothing_there(pair: str, key: str, recipe: Recipe) -> UsageError:
    """The error for a KEY=VALUE of an empty section, with what to say in its place."""
    section, _, field = key.partition(".")
    value = pair.partition("=")[2]
    there = [f"{place}={value}" for place in places(key, recipe)] if section == OVERLAP and field in HANDED else []
    return UsageError(
        f"{pair}: {section} has no parts here: this recipe leaves it empty, or it is a preset's name",
        hint=f"say {' '.join(there)}"
        if there
        else f"leave it out; {PRESET}"
        if section == PRECISION
        else "leave it out",
    )


def _has(keys: Collection[str], key: str) -> bool:
    """Whether the key is there; inside of what is listed without parts of its own, everything may be."""
    if key in keys:
        return True
    above = key.rpartition(".")[0]
    while above:
        if above in keys:
            return "." in above and not any(k.startswith(f"{above}.") for k in keys)
        above = above.rpartition(".")[0]
    return False


def _nearest(keys: Collection[str], key: str) -> str:
    """Near names: in the same section, the same field elsewhere, then anything spelled like it."""
    section, _, field = key.partition(".")
    same = sorted(k for k in keys if k.partition(".")[2] == field and field)
    inside = [k for k in keys if k.startswith(f"{section}.")]
    near = difflib.get_close_matches(key, inside or list(keys), n=3, cutoff=0.6)
    found = list(dict.fromkeys([*same[:2], *near]))[:4] or difflib.get_close_matches(key, list(keys), n=3, cutoff=0.5)
    if found:
        return "nearest: " + ", ".join(found)
    return "sections are " + ", ".join(sorted(k for k in keys if "." not in k))
