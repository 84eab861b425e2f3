"""What goes wrong in the first iterations, by the line that says so. One row, one sentence, one thing to try."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Symptom:
    """`sentence` may use the pattern's groups as {0}, {1}."""

    kind: str
    pattern: re.Pattern[str]
    sentence: str
    todo: str


def _row(kind: str, pattern: str, sentence: str, todo: str) -> Symptom:
    return Symptom(kind, re.compile(pattern), sentence, todo)


SYMPTOMS: tuple[Symptom, ...] = (
    _row("oom", r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|"
         r"Cuda failure.*out of memory",
         "a GPU ran out of memory", "--retries tries the next plans; --headroom 0.15 or --recompute full leaves more room"),
    _row("host-oom", r"exitcode +: -9 .*SIGKILL|oom-kill|Cannot allocate memory|DefaultCPUAllocator: can't allocate memory",
         "a rank was killed, most likely because the host ran out of memory",
         "look into dmesg; fewer data workers (dataset.num_workers) and no optimizer offload need less"),
    _row("nan", r"found NaN in|Unexpected result nan|number of nan iterations: +[1-9]|lm loss: (?:NAN|nan|INF|inf)|"
         r"loss is (?:nan|inf)",
         "the loss or a gradient is not a number", "try --precision bf16, a lower optimizer.lr, or a longer warm-up"),
    _row("hang", r"Watchdog caught collective operation timeout|"
         r"Timed out waiting \d+ms for (?:recv|send)|wait timeout after \d+ms",
         "a collective did not finish: some rank never came",
         "compare the ranks' last lines; NCCL_DEBUG=INFO names the links, TORCH_NCCL_TRACE_BUFFER_SIZE=2000 the collective"),
    _row("cuda", r"CUDA error: (?!out of memory)([^.\n]+)|Error 802: system not yet initialized",
         "CUDA failed: {0}", "`parlaunch doctor` looks at driver, fabric and ECC; CUDA_LAUNCH_BLOCKING=1 names the kernel"),
    _row("nccl", r"NCCL error in|DistBackendError|ncclUnhandledCudaError|ncclSystemError|ncclRemoteError|ncclInternalError|"
         r"NCCL WARN (.*)",
         "NCCL failed {0}", "NCCL_DEBUG=INFO says on which link; `parlaunch doctor` checks ports, fabric and interfaces"),
    _row("network", r"EADDRINUSE|Address already in use|connectFullMesh failed|Connection reset by peer|"
         r"The client socket has (?:timed out|failed to connect)|Connection refused",
         "the ranks did not meet or lost each other", "another --master-port; GLOO_SOCKET_IFNAME names the interface"),
    _row("hub", r"GatedRepoError|Cannot access gated repo|LocalEntryNotFoundError|OfflineModeIsEnabled|"
         r"couldn't connect to 'https://huggingface.co'|We couldn't connect to",
         "the model's configuration or tokenizer could not be read from the Hugging Face hub",
         "log in (HF_TOKEN), or fill HF_HOME on a node that has a network"),
    _row("checkpoint", r"requires? (?:a )?loading from (?:a|an available) pretrained checkpoint|CheckpointingException|"
         r"no checkpoint found",
         "the checkpoint to start from was not found", "set checkpoint.pretrained_checkpoint=PATH"),
    _row("package", r"(?:ModuleNotFoundError|ImportError): (.*)", "a package is missing: {0}",
         "install it where the ranks run, or use NVIDIA's container"),
    _row("override", r"OverridesError|OverrideParseException|ConfigAttributeError|there is no section|has no field",
         "an override was refused", "check its key and value"),
    _row("assertion", r"AssertionError:? ?(.*)|ValueError: (.*)", "Megatron refused its settings: {0}{1}",
         "`parlaunch plan --why-not` names the rule when it is about the layout"),
    _row("error", r"\b(\w+Error: .+)", "the training failed: {0}", ""),
)  # fmt: skip
"""A line counts for the first row that fits it."""

GENERAL = ("package", "override", "assertion", "error")
"""Kinds of which only the last one counts: logs are full of exceptions that somebody caught."""

CAUSE_FIRST = (
    "oom", "host-oom", "nan", "cuda", "hub", "checkpoint", *GENERAL, "hang", "nccl", "network",
)  # fmt: skip
"""Of several failures in one log, the likelier cause first: when one rank breaks, its peers report broken connections."""


COMPONENT_OF: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), component)
    for pattern, component in (
        (
            r"optimizer/.*:(step|prepare_grads|_init|init_state|_copy|get_parameter_state|__init__)|fused_adam",
            "optimizer",
        ),
        (r"param_and_grad_buffer|distributed_data_parallel\.py:__init__", "gradients"),
        (r"cross_entropy|compute_language_model_loss|output_layer|vocab_parallel", "logits"),
        (r"token_dispatcher|fused_a2a|moe_utils\.py|deep_ep", "buffers"),
        (r"model_provider|:provide|:get_model|:build_module", "weights"),
        (
            r"schedules\.py:backward_step|autograd/|checkpoint\.py|transformer_(block|layer)|attention|mlp|layernorm",
            "activations",
        ),
    )
)
"""File and function of a frame in the traceback, and the part of memory that grows there."""
