"""Train a tiny GPT on CPU with Megatron Core's own parallelism over gloo. Every rank of torchrun runs this.

    python -m torch.distributed.run --standalone --nproc-per-node=4 -m parlaunch_launch.cpu.core_runner \\
        --recipe llama32_1b_pretrain_config model.tensor_model_parallel_size=2 model.pipeline_model_parallel_size=2

The model is the tiny one of the recipe's family (`parlaunch.model.tiny`); overrides carry Bridge's keys. Process groups, sharded
layers, pipeline schedule, DDP, optimizer, clipping and learning-rate schedule are Megatron Core's. Not Megatron's: the
stand-ins of `stand_ins`, and a synthetic stream of tokens that can be learnt.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from parlaunch_launch.cpu.checkpoint import Keeper
from parlaunch_launch.cpu.missing import fill_in
from parlaunch_launch.cpu.report import say, say_layout, say_switches
from parlaunch_launch.cpu.settings import read, value_of
from parlaunch_launch.rank import run_rank

GROUPS = (
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
    "context_parallel_size", "expert_model_parallel_size", "expert_tensor_parallel_size",
)  # fmt: skip

PROVIDER = (
    "vocab_size", "seq_length", "share_embeddings_and_output_weights", "position_embedding_type", "rotary_base",
    "rotary_percent", "make_vocab_size_divisible_by",
)  # fmt: skip
"""Fields of Bridge's model providers that are no fields of Megatron's TransformerConfig."""

TRAIN = {"train_iters": 10, "global_batch_size": 8, "micro_batch_size": 1, "precision": "bf16"}
SCHEDULER = {"lr_warmup_iters": 0, "lr_decay_style": "cosine", "lr_decay_iters": None}
OPTIMIZER = {"optimizer": "adam", "lr": 4e-3, "min_lr": 0.0, "clip_grad": 1.0, "use_distributed_optimizer": True}
DATASET = {"seq_length": 64, "sequence_length": None, "random_seed": 1234}


def settings(recipe_name: str, overrides: Sequence[str], world: int) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Every section's values: the tiny recipe's, then what the overrides say; and what of them this runner reads past."""
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer.transformer_config import MLATransformerConfig

    from parlaunch.model.tiny import shrink, tiny_overrides

    base, activation = _tiny(recipe_name)
    mine = tiny_overrides(shrink(base, world)) if base else ()
    known = {
        "model": {f.name for f in fields(MLATransformerConfig)} | set(PROVIDER),
        "optimizer": {f.name for f in fields(OptimizerConfig)},
        "ddp": {f.name for f in fields(DistributedDataParallelConfig)},
        "train": {
            *TRAIN,
            "manual_gc",
            "manual_gc_interval",
            "manual_gc_eval",
            "exit_duration_in_mins",
            "exit_signal_handler",
        },
        "scheduler": {*SCHEDULER, "start_weight_decay", "end_weight_decay"},
        "dataset": {*DATASET, "blend", "num_workers", "split"},
    }
    given, unused = read([*mine, *overrides], known)
    theirs = {o.split(".")[0] for o in overrides if o not in mine}  # of what we said ourselves nobody needs to hear
    defaults: dict[str, dict[str, Any]] = {
        "train": TRAIN,
        "scheduler": SCHEDULER,
        "optimizer": OPTIMIZER,
        "dataset": DATASET,
    }
    said = {name: {**defaults.get(name, {}), **values} for name, values in given.items()}
    said["model"].setdefault("activation_func", activation)
    said["checkpoint"] = dict(_checkpoint(overrides))
    return said, [sentence for sentence in unused if sentence.split(".")[0] in theirs]


def _checkpoint(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """What is read of Bridge's `checkpoint` section."""
    for override in overrides:
        key, _, text = override.lstrip("+").partition("=")
        if key in ("checkpoint.save", "checkpoint.load", "checkpoint.save_interval"):
            yield key.partition(".")[2], value_of(text)


def _tiny(name: str) -> tuple[Any, str | None]:
    """The catalog's recipe and its activation; None where the name is not in the catalog and overrides say it all."""
    from parlaunch.errors import UsageError
    from parlaunch.model.catalog import recipe

    try:
        found = recipe(name)
    except UsageError:
        return None, None
    return found, found.architecture.activation_func


def activation(name: str | None, gated: bool) -> Any:
    """The function that Megatron wants for an activation's name."""
    import torch
    from megatron.core.activations import fast_gelu, quick_gelu, squared_relu

    known = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu, "relu": torch.nn.functional.relu,
             "squared_relu": squared_relu, "quick_gelu": quick_gelu, "fast_gelu": fast_gelu}  # fmt: skip
    return known[name or ("silu" if gated else "gelu")]


def transformer_config(model: dict[str, Any], precision: str) -> Any:
    """Megatron's configuration of the model, with the settings that name CUDA kernels switched off."""
    import torch
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    values = {k: v for k, v in model.items() if k not in PROVIDER}
    kind = MLATransformerConfig if values.get("multi_latent_attention") else TransformerConfig
    interleaved = values.get("virtual_pipeline_model_parallel_size") is not None
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    mla = {"rope_type": "rope", "apply_rope_fusion": False} if kind is MLATransformerConfig else {}
    values = {
        "hidden_dropout": 0.0, "attention_dropout": 0.0, "bias_activation_fusion": False, "bias_dropout_fusion": False,
        "moe_token_dispatcher_type": "allgather",  # the all-to-all one takes its split sizes from CUDA tensors only
        **mla, **{k: v for k, v in values.items() if not (v is None and k in _NOT_NONE)},
        "activation_func": activation(values.get("activation_func"), bool(values.get("gated_linear_unit"))),
    }  # fmt: skip
    return kind(
        **{
            **values,
            "bf16": precision == "bf16", "params_dtype": dtype, "pipeline_dtype": dtype,
            "use_cpu_initialization": True,
            # Interleaved stages as Bridge runs them: batched, the two-way traffic of PP=2 would be mixed up.
            "overlap_p2p_comm": interleaved, "batch_p2p_comm": not interleaved,
            "batch_p2p_sync": False,  # else torch.cuda.synchronize() after each send and receive
            "gradient_accumulation_fusion": False, "masked_softmax_fusion": False, "apply_rope_fusion": False,  # CUDA kernels
            "finalize_model_grads_func": finalize_model_grads,
        }
    )  # fmt: skip


_NOT_NONE = ("q_lora_rank", "recompute_modules", "cp_comm_type", "expert_tensor_parallel_size")
"""Fields in which `null` means Megatron's own default."""


def build_model(config: Any, model: dict[str, Any], seq_length: int) -> list[Any]:
    """This rank's model chunks: one, or one per virtual pipeline stage."""
    from megatron.core import parallel_state as mpu
    from megatron.core.models.gpt.gpt_model import GPTModel

    from parlaunch_launch.cpu.stand_ins import cpu_layers

    unit = (model.get("make_vocab_size_divisible_by") or 128) * config.tensor_model_parallel_size
    vocabulary = unit * math.ceil(model["vocab_size"] / unit)
    positions = model.get("position_embedding_type") or "rope"
    chunks = []
    for stage in range(config.virtual_pipeline_model_parallel_size or 1):
        vp_stage = stage if config.virtual_pipeline_model_parallel_size else None
        chunks.append(
            GPTModel(
                config, cpu_layers(config, vp_stage=vp_stage), vocabulary, seq_length,
                pre_process=mpu.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
                post_process=mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
                share_embeddings_and_output_weights=bool(model.get("share_embeddings_and_output_weights")),
                position_embedding_type=positions, rotary_base=int(model.get("rotary_base") or 10_000), vp_stage=vp_stage,
            )
        )  # fmt: skip
    return chunks


def batches(vocabulary: int, seq_length: int, micro_batch_size: int, seed: int) -> Iterator[Any]:
    """Sequences in which each token determines the next, so that the loss can fall; first tokens are random.

    Few tokens of the vocabulary occur: a handful of iterations has to show that something is learnt.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    alphabet = min(vocabulary, 64)
    while True:
        tokens = [torch.randint(alphabet, (micro_batch_size,), generator=generator)]
        for _ in range(seq_length):
            tokens.append((3 * tokens[-1] + 1) % alphabet)
        yield torch.stack(tokens, dim=1)


def forward_step(data: Iterator[Any], model: Any) -> Any:
    """One micro batch through the model, and the function that makes its loss: what Megatron's schedules call."""
    import torch
    from megatron.core import parallel_state as mpu

    from parlaunch_launch.cpu.stand_ins import token_order

    sample = next(data)
    mine = token_order(sample.size(1) - 1)[mpu.get_context_parallel_rank()]
    tokens, labels, positions = sample[:, mine], sample[:, mine + 1], mine.expand(len(sample), -1)

    def loss_function(losses: Any) -> Any:
        losses = losses.float()
        return losses.sum(), torch.tensor(losses.numel(), dtype=torch.int), {"lm loss": losses.detach().mean()}

    return model(tokens, positions, attention_mask=None, labels=labels), loss_function


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    fill_in()
    run_rank(lambda: train(args.recipe, args.overrides))


def train(recipe_name: str, overrides: Sequence[str]) -> None:
    """The training of one rank, from process groups to the last iteration."""
    import os

    import torch.distributed as dist

    from parlaunch_launch.cpu.stand_ins import train_on_cpu

    said, unused = settings(recipe_name, overrides, int(os.environ.get("WORLD_SIZE", "1")))
    train_on_cpu()
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        for sentence in unused:
            say(f"note: {sentence}")
    run(said)
    dist.barrier()
    dist.destroy_process_group()


def run(said: dict[str, dict[str, Any]]) -> None:
    """One training in Megatron's process groups, which are gone afterwards. torch.distributed is up, the stand-ins are in."""
    from megatron.core import num_microbatches_calculator as microbatches
    from megatron.core import parallel_state as mpu

    _initialize(said)
    _loop(said)
    mpu.destroy_model_parallel()
    microbatches.destroy_num_microbatches_calculator()


def _initialize(said: dict[str, dict[str, Any]]) -> None:
    """Megatron's process groups and micro batch calculator."""
    import torch.distributed as dist
    from megatron.core import num_microbatches_calculator as microbatches
    from megatron.core import parallel_state as mpu

    model, plan = said["model"], said["train"]
    mpu.initialize_model_parallel(**{k: model[k] for k in GROUPS if model.get(k) is not None})
    say_layout()
    microbatches.init_num_microbatches_calculator(
        dist.get_rank(), None, plan["global_batch_size"], plan["micro_batch_size"], mpu.get_data_parallel_world_size(), False
    )  # fmt: skip


def _prepare(said: dict[str, dict[str, Any]], seq_length: int) -> tuple[Any, list[Any], Any, Any]:
    """Configuration, wrapped model chunks, optimizer and learning-rate schedule."""
    import torch
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron.core.transformer.module import Float16Module

    bf16 = said["train"]["precision"] == "bf16"
    config = transformer_config(said["model"], said["train"]["precision"])
    torch.manual_seed(1234)  # the same on every rank: CPU initialization cuts shards from one full weight
    chunks = build_model(config, said["model"], seq_length)
    ddp = DistributedDataParallelConfig(
        **{"use_distributed_optimizer": True, "grad_reduce_in_fp32": bf16, **said["ddp"]}
    )
    model = [DistributedDataParallel(config, ddp, Float16Module(config, c) if bf16 else c) for c in chunks]
    if ddp.overlap_grad_reduce:  # only the last micro batch's gradients travel
        syncs = [chunk.no_sync for chunk in model]
        config.no_sync_func = syncs if len(syncs) > 1 else syncs[0]
    values = {**said["optimizer"], "use_distributed_optimizer": ddp.use_distributed_optimizer}
    if bf16:
        values |= {"bf16": True, "params_dtype": torch.bfloat16}
    optimizer = get_megatron_optimizer(OptimizerConfig(**values), model)
    plan = said["scheduler"]
    scheduler = OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=optimizer.config.lr, min_lr=optimizer.config.min_lr,
        lr_warmup_steps=plan["lr_warmup_iters"], lr_decay_steps=max(plan["lr_decay_iters"] or said["train"]["train_iters"], 1),
        lr_decay_style=plan["lr_decay_style"], start_wd=0.01, end_wd=0.01, wd_incr_steps=1, wd_incr_style="constant",
    )  # fmt: skip
    return config, model, optimizer, scheduler


def _loop(said: dict[str, dict[str, Any]]) -> None:
    import torch.distributed as dist
    from megatron.core import num_microbatches_calculator as microbatches
    from megatron.core import parallel_state as mpu
    from megatron.core.pipeline_parallel import get_forward_backward_func

    plan = said["train"]
    seq_length = said["dataset"]["sequence_length"] or said["dataset"]["seq_length"]
    config, model, optimizer, scheduler = _prepare(said, seq_length)
    say_switches(config, model, optimizer)
    keeper = Keeper(said["checkpoint"], plan, model, optimizer, scheduler)
    replica = mpu.get_data_parallel_rank()
    if replica == 0 and mpu.get_context_parallel_rank() == 0:
        count = sum(p.numel() for chunk in model for p in chunk.parameters())
        where = f"({mpu.get_tensor_model_parallel_rank()}, {mpu.get_pipeline_model_parallel_rank()})"
        say(f" > number of parameters on (tensor, pipeline) model parallel rank {where}: {count}")
    # The same samples on all ranks of one data-parallel replica.
    data = [batches(said["model"]["vocab_size"], seq_length, plan["micro_batch_size"], seed=replica) for _ in model]
    forward_backward = get_forward_backward_func()
    last = dist.get_rank() == dist.get_world_size() - 1
    done = keeper.begin()
    for samples in data:  # those that were trained on already
        for _ in range(done * microbatches.get_num_microbatches()):
            next(samples)
    for iteration in range(done + 1, plan["train_iters"] + 1):
        started = time.perf_counter()
        for chunk in model:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        results = forward_backward(
            forward_step_func=forward_step,
            data_iterator=data if len(data) > 1 else data[0],
            model=model,
            num_microbatches=microbatches.get_num_microbatches(),
            seq_length=seq_length,
            micro_batch_size=plan["micro_batch_size"],
            forward_only=False,
        )
        rate = optimizer.param_groups[0]["lr"]
        updated, grad_norm, _ = optimizer.step()
        scheduler.step(increment=1)
        loss = _mean_loss(results)
        if last and loss is not None:
            say(
                f" [{datetime.now():%Y-%m-%d %H:%M:%S}] iteration {iteration:8d}/{plan['train_iters']:8d} |"
                f" consumed samples: {iteration * plan['global_batch_size']:12d} |"
                f" elapsed time per iteration (ms): {1000 * (time.perf_counter() - started):.1f} |"
                f" learning rate: {rate:.6E} | global batch size: {plan['global_batch_size']:5d} |"
                f" lm loss: {loss:.6E} | grad norm: {grad_norm:.3f} |"
                f" number of skipped iterations: {int(not updated):3d} |"
                f" number of nan iterations: {int(not math.isfinite(loss)):3d} |"
            )
        if loss is not None and not math.isfinite(loss):
            raise SystemExit(f"loss is {loss} at iteration {iteration}")
        if keeper.ends_after(iteration):
            break
    if last:  # in the words of Megatron's report, for the whole process: ru_maxrss is KiB on Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        say(
            f" [Rank {dist.get_rank()}] (after {plan['train_iters']} iterations) host memory (MB) | max resident: {peak:.1f}"
        )


def _mean_loss(results: Any) -> float | None:
    """The loss over micro batches and replicas, on ranks of the last pipeline stage; None elsewhere."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state as mpu

    if not mpu.is_pipeline_last_stage():
        return None
    loss = torch.stack([result["lm loss"] for result in results]).mean()
    replicas = mpu.get_data_parallel_group(with_context_parallel=True)
    dist.all_reduce(loss, group=replicas)
    return float(loss.item() / replicas.size())


if __name__ == "__main__":
    main()
