"""Run in a child process by `parlaunch_probes.bridge`: what Megatron Bridge builds from a plan's command, as one JSON line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any
from unittest.mock import patch

from parlaunch.model.architecture import Architecture
from parlaunch_probes.bridge_child import describe, function, shape_of


def built(config: Any, keys: Sequence[str] = ()) -> dict[str, Any]:
    """What a finished ConfigContainer says of every quantity of a plan; those that this model's configuration does not have are
    left out. `keys` are places in it whose values are wanted too."""
    m = shape_of(config)
    said = describe(config)
    sizes = [name for name in Architecture.__dataclass_fields__ if hasattr(m, name) or hasattr(config.model, name)]
    found = {
        **{name: said[name] for name in ("layout", "features", "global_batch_size", "seq_length", "precision")},
        "dp": config.data_parallel_size,
        "cp_comm_type": getattr(m, "cp_comm_type", None),
        "model": {name: getattr(m, name, getattr(config.model, name, None)) for name in sizes},
        "stages": stages(m),
        "keys": {key: _at(config, key) for key in keys},
    }
    made = json.loads(json.dumps(found, default=str))
    assert isinstance(made, dict)
    return made


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part, None)
    return config


def stages(m: Any) -> list[int] | None:
    """Decoder layers that Megatron Core builds on each virtual stage, in order of execution; None for models whose stages
    are not cut by number."""
    if getattr(m, "hybrid_layer_pattern", None) or getattr(m, "hybrid_override_pattern", None):
        return None
    return list(layers_built(m, pp=m.pipeline_model_parallel_size, vp=m.virtual_pipeline_model_parallel_size))


def layers_built(m: Any, *, pp: int, vp: int | None) -> tuple[int, ...]:
    """Decoder layers of each virtual stage as Megatron Core counts them for a TransformerConfig, in order of execution."""
    from megatron.core import parallel_state as mpu
    from megatron.core.transformer.transformer_block import get_num_layers_to_build

    counted = []
    for v in range(vp or 1):
        for p in range(pp):
            # Only who asks matters here, not the groups.
            with patch.multiple(
                mpu,
                get_pipeline_model_parallel_rank=lambda p=p: p,
                get_virtual_pipeline_model_parallel_world_size=lambda: vp,
                get_pipeline_model_parallel_world_size=lambda: pp,
            ):
                counted.append(get_num_layers_to_build(m, vp_stage=v if vp else None, pp_rank=p))
    return tuple(counted)


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """`built` of the configuration that the question's command makes; "refused" with Bridge's sentence where it makes none;
    "error" where Bridge cannot be asked here."""
    try:
        function(question["prepare"])()
        make = function(question["build"])
    except Exception as error:
        return {"error": _sentence(error)}
    try:
        with redirect_stdout(io.StringIO()):
            config = make(
                question["argv"],
                world=question["world"],
                gpu=question["gpu"],
                capability=tuple(question["capability"]),
            )
    except (ImportError, OSError) as error:
        return {"error": _sentence(error)}
    except Exception as error:
        return {"refused": _sentence(error)}
    return built(config, question["keys"])


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
