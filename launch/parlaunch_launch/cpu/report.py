"""What the ranks say: one write a line, and the layout as Megatron's own process groups have it."""

from __future__ import annotations

import sys


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
