"""A user's keys that Megatron takes only beside another value: what has to be said too, or why the key is of no use here.

Each row has its source. What depends on the layout is a rule (`parlaunch.rules`); keys of which Megatron takes one are in
`parlaunch.environment.exclusive`.
"""

from __future__ import annotations

from collections.abc import Callable

from parlaunch.environment.bridge_versions import Version
from parlaunch.environment.exclusive import FINE, FINE_MODULES, Given, said
from parlaunch.environment.override_grammar import value
from parlaunch.environment.user_switches import LAYERS_OFF, LAYERS_OFF_NUMBER, SHARDED
from parlaunch.environment.value_types import OPTIMIZER
from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass
from parlaunch.model.recipe import Recipe
from parlaunch.model.sections import PRECISION
from parlaunch.rules.switches import EXPERTS_OWN, UNGROUPED


@dataclass(frozen=True, slots=True)
class Need:
    """A switch that Megatron takes only beside another key: `add` is what to say of that, and `why` it is so."""

    key: str
    add: str
    why: str
    there: Callable[[Recipe], bool] = lambda _r: False  # whether the recipe says it already


GROUPED = "model.moe_grouped_gemm"
SINGLE_WEIGHT, SINGLE_BIAS = "model.moe_single_grouped_weight", "model.moe_single_grouped_bias"

NEEDS: tuple[Need, ...] = (
    # bridge/training/config.py:598
    Need("checkpoint.load_main_params_from_ckpt", "checkpoint.load_optim=False", "main weights are read in the optimizer's place"),
    # bridge/training/config.py:415
    Need(
        "scheduler.use_checkpoint_opt_param_scheduler", "scheduler.override_opt_param_scheduler=False",
        "the recipe's own schedule stands in place of the checkpoint's",
    ),
    # megatron/core/datasets/blended_megatron_dataset_config.py:101, :110
    Need("dataset.fast_cache_load", "dataset.path_to_cache=FOLDER", "it is not said where the cache is"),
    Need("dataset.defer_npy_index_mmap", "dataset.path_to_cache=FOLDER", "it is not said where the cache is"),
    # bridge/training/config.py:686, :710
    Need("logger.mlflow_experiment", "logger.mlflow_run_name=NAME", "MLflow's run has no name"),
    Need("logger.comet_project", "logger.comet_experiment_name=NAME", "Comet's experiment has no name"),
    # megatron/core/transformer/transformer_config.py:2140, bridge/training/config.py:1367, megatron/core/transformer/transformer_config.py:1689
    Need("model.use_te_activation_func", "model.bias_activation_fusion=False", "Megatron fuses the activation with a bias, or takes another's"),
    Need("model.restore_modelopt_state", "model.gradient_accumulation_fusion=False", "quantized models sum no gradients in products"),
    Need(
        "model.moe_expert_rank_capacity_factor", "model.use_transformer_engine_op_fuser=True", "HybridEP drops tokens in a fused kernel alone",
        lambda r: r.features.paged_stash,
    ),
    # megatron/core/transformer/transformer_config.py:1907
    Need(
        "model.moe_paged_stash", "model.moe_expert_rank_capacity_factor=1.5 model.use_transformer_engine_op_fuser=True",
        "it is not said how many tokens the stash holds", lambda r: r.features.paged_stash,
    ),
    # megatron/core/transformer/transformer_config.py:1579
    Need(
        SINGLE_WEIGHT, "model.use_transformer_engine_op_fuser=True", "weights of all experts are one tensor for fused kernels alone",
        lambda r: r.features.paged_stash,
    ),
    # Of none it moves nothing, and excludes pipeline stages all the same (megatron/core/transformer/transformer_config.py:1714).
    Need(
        LAYERS_OFF, f"{LAYERS_OFF_NUMBER}=1", "it is not said of how many layers",
        lambda r: r.features.cpu_offload_layers > 0,
    ),
)  # fmt: skip


def _needs(r: Recipe, _made: Recipe, given: Given) -> None:
    for need in NEEDS:
        other = need.add.partition("=")[0]
        if said(given, need.key) in (None, False) or need.there(r) or other in given:
            continue
        raise UsageError(f"{need.key}={given[need.key]}: {need.why}", hint=f"add {need.add}")


FORMATS = (
    (f"{PRECISION}.fp4_param_gather", "nvfp4"), ("model.fp8_output_proj", "fp8mx"),
    (f"{PRECISION}.reuse_grad_buf_for_mxfp8_param_ag", "fp8mx"),
)  # fmt: skip
"""Switches of one precision alone."""


def _widths(_r: Recipe, made: Recipe, given: Given) -> None:
    # bridge/training/mixed_precision.py: one of them is on, and the others stay as the recipe has them
    width = made.precision if made.precision in ("fp16", "fp32") else "bf16"
    for kind in ("fp16", "bf16", "fp32"):
        key = f"{PRECISION}.{kind}"
        if isinstance(said(given, key), bool) and said(given, key) is not (kind == width):
            raise UsageError(
                f"{key}={given[key]}: the recipe trains in {made.precision}, and what else that sets would stand",
                hint="say --precision bf16, fp16 or fp32 in its place",
            )


def _formats(_r: Recipe, made: Recipe, given: Given) -> None:
    # megatron/core/transformer/transformer_config.py:1442, :1451
    for key, wanted in FORMATS:
        if said(given, key) is True and made.precision != wanted:
            raise UsageError(
                f"{key}={given[key]}: that is for training in {wanted}, and this is in {made.precision}",
                hint=f"--precision {wanted}, or leave it out",
            )


def _activation(_r: Recipe, made: Recipe, given: Given) -> None:
    # megatron/core/transformer/transformer_config.py: activation_func_fp8_input_store
    key, a = "model.activation_func_fp8_input_store", made.architecture
    if said(given, key) is True and not (a.gated_linear_unit and a.activation_func == "silu"):
        raise UsageError(
            f"{key}={given[key]}: only the input of SwiGLU is kept so, and {made.model} has none", hint="leave it out"
        )


def _lists(_r: Recipe, made: Recipe, given: Given) -> None:
    # megatron/core/transformer/transformer_config.py:1648, bridge/training/utils/config_utils.py: one for each kind of balancing
    kinds, losses = "model.moe_router_load_balancing_type", "model.moe_aux_loss_coeff"
    found, of = said(given, kinds), said(given, losses)
    if isinstance(found, list) and not (isinstance(of, list) and len(of) == len(found)):
        raise UsageError(
            f"{kinds}={given[kinds]}: {losses} has to be a list of as many",
            hint=f"add {losses}=[{','.join(['0.01'] * len(found))}]",
        )
    key, layers = "model.no_rope_freq", made.architecture.num_layers
    if isinstance(found := said(given, key), list) and len(found) != layers:
        raise UsageError(
            f"{key}={given[key]}: it speaks of {len(found)} layers, and the model has {layers}",
            hint="a 0 or 1 for each, or a number",
        )


def _grouped(_r: Recipe, made: Recipe, given: Given) -> None:
    # megatron/core/transformer/transformer_config.py:1556, :1571, :1586
    for key in (SINGLE_WEIGHT, SINGLE_BIAS):
        if said(given, key) is not True:
            continue
        if not made.architecture.num_moe_experts:
            raise UsageError(f"{key}=True: {made.model} has no experts", hint="leave it out")
        if UNGROUPED in made.unsettled:
            raise UsageError(f"{key}=True: the experts are multiplied one by one", hint=f"leave {GROUPED} out")
        if key == SINGLE_WEIGHT and made.precision in ("fp8cs", "fp8ds", "fp8sc"):
            raise UsageError(
                f"{key}=True: Megatron has such weights in 16 bits, MXFP8 and NVFP4, and this is in {made.precision}",
                hint="say --precision bf16, fp8mx or nvfp4, or leave it out",
            )
        if key == SINGLE_BIAS and not made.architecture.add_bias_linear:
            raise UsageError(f"{key}=True: {made.model} has no biases", hint="leave it out")


def _read(_r: Recipe, _made: Recipe, given: Given) -> None:
    # bridge/training/config.py:618; of recipes most have a folder, and some benchmarks have none
    key, folder = "checkpoint.ckpt_step", "checkpoint.load"
    if said(given, key) is not None and folder in given and said(given, folder) is None:
        raise UsageError(f"{key}={given[key]}: it is not said where the checkpoint is", hint=f"say {folder}=FOLDER")


def _invariant(_r: Recipe, _made: Recipe, given: Given) -> None:
    # megatron/core/transformer/transformer_config.py:2877 compares with a value that Bridge makes of no word (bridge/training/utils/omegaconf_utils.py)
    if said(given, "model.batch_invariant_mode") is True:
        raise UsageError(
            "model.batch_invariant_mode=True: Megatron asks for model.attention_backend=flash with it, which Bridge hands on as a word "
            "that Megatron does not know",
            hint="leave it out; model.deterministic_mode=True is for runs that repeat their numbers",
        )


def _backend(_r: Recipe, _made: Recipe, given: Given) -> None:
    # Megatron takes it with the flex dispatcher alone (megatron/core/transformer/transformer_config.py:1587), and no plan is made with it.
    key = "model.moe_flex_dispatcher_backend"
    if said(given, key) == "ncclep":
        raise UsageError(
            f"{key}={given[key]}: how long NCCL's dispatch takes is not known, and no plan is made with it",
            hint="say deepep or hybridep, or model.moe_token_dispatcher_type=alltoall",
        )


def _offloaded(r: Recipe, made: Recipe, given: Given) -> None:
    fused, modules = (
        "model.use_transformer_engine_op_fuser",
        value(given[FINE_MODULES]) if FINE_MODULES in given else (),
    )
    # megatron/core/transformer/transformer_config.py:1912, where it is not asked whether modules are offloaded at all
    if made.features.paged_stash and (inner := [name for name in modules or () if name in EXPERTS_OWN]):
        raise UsageError(
            f"{FINE_MODULES}={given[FINE_MODULES]}: the paged stash holds {', '.join(inner)} already",
            hint="leave them out",
        )
    # megatron/core/transformer/transformer_config.py:1849, :1917
    if modules is None and (r.features.offload_modules or made.features.paged_stash) and FINE not in given:
        raise UsageError(
            f"{FINE_MODULES}={given[FINE_MODULES]}: no module is named", hint=f"say {FINE}=False in its place"
        )
    # megatron/core/transformer/transformer_config.py:1895
    if modules and "fused_group_mlp" in made.features.offload_modules and fused not in given:
        raise UsageError(
            f"{FINE_MODULES}={given[FINE_MODULES]}: fused_group_mlp is a fused kernel's", hint=f"add {fused}=True"
        )


def _aware(_r: Recipe, made: Recipe, given: Given) -> None:
    # megatron/core/optimizer/optimizer_config.py:431, :476
    aware = "optimizer.use_precision_aware_optimizer"
    on = made.features.precision_aware_optimizer
    if on and (named := said(given, OPTIMIZER)) not in (None, "adam"):
        raise UsageError(
            f"{OPTIMIZER}={named}: the recipe's optimizer is precision-aware, which is Adam's",
            hint=f"add {aware}=False",
        )
    for key in ("optimizer.exp_avg_sq_dtype", "optimizer.main_grads_dtype"):
        if (
            not on
            and said(given, key) is not None
            and str(said(given, key)).removeprefix("torch.") not in ("float32", "fp32")
        ):
            raise UsageError(
                f"{key}={given[key]}: only the precision-aware optimizer keeps it so", hint=f"add {aware}=True"
            )


def _optimizer(_r: Recipe, made: Recipe, given: Given) -> None:
    sharded, own = SHARDED
    # megatron/core/optimizer/optimizer_config.py:436, before Bridge makes it agree with DDP's
    if said(given, own) is False and said(given, sharded) is not False and made.features.precision_aware_optimizer:
        raise UsageError(
            f"{own}={given[own]}: the precision-aware optimizer of this recipe is distributed",
            hint=f"add optimizer.use_precision_aware_optimizer=False {sharded}=False",
        )


def _activation_fused(_r: Recipe, made: Recipe, given: Given) -> None:
    # megatron/core/transformer/transformer_config.py:2120
    fused, a = "model.bias_activation_fusion", made.architecture
    if said(given, fused) is False:
        return
    if said(given, "model.glu_linear_offset") not in (None, 0) and a.activation_func != "quick_gelu":
        raise UsageError(
            f"model.glu_linear_offset={given['model.glu_linear_offset']}: {a.activation_func} is fused without one",
            hint=f"add {fused}=False",
        )
    for key, kind in (("model.gated_linear_unit", "quick_gelu"), ("model.add_bias_linear", "gelu")):
        if said(given, key) is False and a.activation_func == kind and not a.gated_linear_unit:
            raise UsageError(
                f"{key}={given[key]}: {kind} is fused with a bias that is not there then", hint=f"add {fused}=False"
            )


def _schedule(_r: Recipe, made: Recipe, given: Given) -> None:
    # bridge/training/config.py:1628
    key, iterations = "scheduler.max_steps", said(given, "train.train_iters") or made.train_iters
    steps = said(given, key)
    if isinstance(steps, int) and isinstance(iterations, int) and steps < iterations:
        raise UsageError(
            f"{key}={given[key]}: the schedule would end before the training, which has {iterations} iterations",
            hint=f"say train.train_iters={steps} too",
        )
    # megatron/core/optimizer_param_scheduler.py:200; no recipe lets it grow, and which of the values that they have this one has is not known
    grows = said(given, "scheduler.weight_decay_incr_style") not in (None, "constant")
    start, end = (f"scheduler.{name}_weight_decay" for name in ("start", "end"))
    for one, other in ((start, end), (end, start)):
        own = DECAYS if other not in given else (said(given, other),)
        if not grows and said(given, one) is not None and said(given, one) not in own:
            raise UsageError(
                f"{one}={given[one]}: decay of weights is constant here, and {other} another",
                hint=f"add {other}={given[one]}"
                if other not in given
                else "give both the same, or say scheduler.weight_decay_incr_style",
            )


DECAYS = (0.033, 0.1)
"""How weights decay in Megatron Bridge's recipes, from start to end (bridge/recipes/utils/optimizer_utils.py)."""

PROFILED = {"profiling.profile_step_start": 10, "profiling.profile_step_end": 12}
"""Steps that are profiled where nobody says otherwise (bridge/training/config.py: `ProfilingConfig`)."""


def _profiled(_r: Recipe, _made: Recipe, given: Given) -> None:
    # bridge/training/config.py:762
    if not PROFILED.keys() & given.keys():
        return
    (start, first), (end, last) = ((key, value(given[key]) if key in given else own) for key, own in PROFILED.items())
    if isinstance(first, int) and isinstance(last, int) and last < first:
        raise UsageError(
            f"{start}={first} is behind {end}={last}",
            hint=f"add {end}={first}" if end not in given else f"add {start}={last}",
        )


INFERENCE = ("model.inference_fuse_tp_communication", "model.inference_disable_triton_nvls_kernels")


def _inference(_r: Recipe, _made: Recipe, given: Given) -> None:
    # megatron/core/transformer/transformer_config.py:2854
    for key in INFERENCE:
        if said(given, key) is True:
            raise UsageError(
                f"{key}={given[key]}: only layers for inference have that, which do not train", hint="leave it out"
            )
    # megatron/core/transformer/transformer_config.py:2456
    if (scope := said(given, "model.inference_cuda_graph_scope")) in ("layer", "block"):
        raise UsageError(
            f"model.inference_cuda_graph_scope={scope}: graphs of training exclude such of inference",
            hint="leave it out",
        )


CHECKS: tuple[Callable[[Recipe, Recipe, Given], None], ...] = (
    _needs, _widths, _formats, _lists, _aware, _activation, _activation_fused, _backend, _offloaded, _optimizer, _schedule, _profiled, _inference, _grouped,
    _read, _invariant,
)  # fmt: skip


def check_needed(recipe: Recipe, made: Recipe, given: Given) -> None:
    """Raise `UsageError` for the first of the user's keys that lacks what Megatron wants beside it. `made` is the recipe as the
    keys change it."""
    for check in CHECKS:
        check(recipe, made, given)


# --- Data -------------------------------------------------------------------------------------------------------------


def check_data(given: Given, recipe: Recipe, version: Version | None) -> None:
    """Raise `UsageError` for a user's own data beside those that a recipe of fine-tuning names, of which Megatron Bridge 0.6 and later
    take one (bridge/data/builders/gpt_sft.py:139, bridge/data/sources/hf.py:77). Other versions have no such sections."""
    if recipe.task == "pretrain" or (version is not None and version < (0, 6, 0)):
        return
    root, hub, share = "dataset.dataset_root", "dataset.hf_dataset", "dataset.hf_validation_proportion"
    if said(given, root) is not None and (lacking := [f"{key}=null" for key in (hub, share) if key not in given]):
        raise UsageError(
            f"{root}={given[root]}: the recipe names a data set of the hub, and Megatron Bridge takes one of the two",
            hint=f"add {' '.join(lacking)}",
        )
    for section in (hub, "dataset.source"):
        path, name = f"{section}.path_or_dataset", f"{section}.dataset_name"
        if said(given, path) is not None and name not in given:
            raise UsageError(
                f"{path}={given[path]}: the recipe names one of Megatron Bridge's own, of which that takes one",
                hint=f"add {name}=null",
            )
        if name in given and said(given, name) is None and path not in given:
            raise UsageError(f"{name}={given[name]}: no data are named then", hint=f"add {path}=NAME")
    validates = "dataset.do_validation"
    if said(given, validates) is False and recipe.architecture.kind == "llm" and share not in given:
        raise UsageError(f"{validates}={given[validates]}: {share} stands, which asks for it", hint=f"add {share}=null")
