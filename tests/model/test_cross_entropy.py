"""What the losses of Megatron Core need a logit: the native one counted in the code that torch compiles its backward pass to, the one that
is not fused by what autograd keeps of it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys

import pytest

from parlaunch.estimate.cross_entropy import LOGIT
from tests.conftest import HANGS_S, need

SCRIPT = """
import torch
from torch._inductor.utils import run_and_get_code
from megatron.core.fusions import fused_cross_entropy as fused

tokens, vocabulary = 512, 4096
softmax = torch.rand(tokens, 1, vocabulary)
gradient, mask, target = torch.ones(tokens, 1), torch.zeros(tokens, 1, dtype=torch.bool), torch.zeros(tokens, dtype=torch.int64)
_, code = run_and_get_code(fused.calculate_gradients, softmax, gradient, mask, target)
print(code[-1])
"""
UNFUSED = """
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from megatron.core import parallel_state
from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy

dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
tokens, vocabulary = 512, 4096
logits = torch.rand(tokens, 1, vocabulary, dtype=torch.bfloat16, requires_grad=True)
kept = {}

def note(tensor):
    kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
    return tensor

with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
    loss = vocab_parallel_cross_entropy(logits, torch.zeros(tokens, 1, dtype=torch.int64))
loss.sum().backward()
print(sum(s.nbytes() for s in kept.values() if s.nbytes() >= tokens * vocabulary) / (tokens * vocabulary), logits.grad.element_size())
"""
BYTES = {"float32": 4, "bfloat16": 2}


@pytest.fixture(scope="module")
def compiled() -> str:
    need(importlib.util.find_spec("torch") and importlib.util.find_spec("megatron"), "megatron-core")
    need(shutil.which("g++"), "g++")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=HANGS_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_native_loss_holds_ten_bytes_a_logit_in_backward_and_four_until_then(compiled: str) -> None:
    """The softmax it saved, a second one for the scatter, and the gradient in 16 bits."""
    made = re.findall(r"= empty_strided_cpu\(\(512, (?:1, )?4096\), .*?torch\.(\w+)\)", compiled)
    assert sorted(made) == ["bfloat16", "float32"]
    at_most, kept = LOGIT["native"]
    assert kept == BYTES["float32"]
    assert at_most == kept + sum(BYTES[kind] for kind in made)


def test_the_loss_that_is_not_fused_keeps_its_softmax_in_float32_and_makes_the_gradient_beside_it() -> None:
    need(importlib.util.find_spec("torch") and importlib.util.find_spec("megatron"), "megatron-core")
    done = subprocess.run([sys.executable, "-c", UNFUSED], capture_output=True, text=True, timeout=HANGS_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    kept, gradient = map(float, done.stdout.split())
    # In forward the logits themselves stand beside what becomes the softmax: as wide as their gradient.
    assert LOGIT["unfused"] == (kept + gradient, kept)
