"""What the ranks say: one write a line, and the layout as Megatron's own process groups have it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def say(line: str) -> None:
    """One line on the screen of many ranks, in one write."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def say_layout() -> None:
    """On rank 0: the sizes that `parallel_state` reports back, in the words of Megatron-LM's training."""
    import torch.distributed as dist
    from megatron.core import parallel_state as mpu

    if dist.get_rank() == 0:
        say(
            f"using world size: {dist.get_world_size()}, data-parallel size: {mpu.get_data_parallel_world_size()}, "
            f"context-parallel size: {mpu.get_context_parallel_world_size()}, "
            f"tensor-model-parallel size: {mpu.get_tensor_model_parallel_world_size()}, "
            f"pipeline-model-parallel size: {mpu.get_pipeline_model_parallel_world_size()}, "
            f"virtual-pipeline-model-parallel size: {mpu.get_virtual_pipeline_model_parallel_world_size()}, "
            f"expert-model-parallel size: {mpu.get_expert_model_parallel_world_size()}, "
            f"expert-tensor-parallel size: {mpu.get_expert_tensor_parallel_world_size()}, "
            f"expert-data-parallel size: {mpu.get_expert_data_parallel_world_size()}"
        )


def say_switches(config: Any, model: Sequence[Any], optimizer: Any) -> None:
    """On rank 0: the performance switches as the finished model, its data-parallel buffers and the optimizer have them."""
    import torch.distributed as dist

    if dist.get_rank() != 0:
        return
    ddp = model[0].ddp_config
    groups = [group for chunk in model for group in (*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups)]
    there = {
        **{
            f"model.{name}": getattr(config, name)
            for name in ("bias_activation_fusion", "bias_dropout_fusion", "overlap_p2p_comm", "recompute_granularity")
        },
        **{f"ddp.{name}": getattr(ddp, name) for name in ("overlap_grad_reduce", "overlap_param_gather")},
        "optimizer.overlap_param_gather": optimizer.config.overlap_param_gather,
        "buckets": sum(len(group.buckets) for group in groups),
    }
    say("running with: " + " ".join(f"{name}={value}" for name, value in there.items()))
