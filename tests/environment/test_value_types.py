"""A value that its field does not take is one sentence, before anything is planned."""

from __future__ import annotations

import pytest

from parlaunch.environment.override_keys import shipped_keys
from parlaunch.environment.value_types import check_values, types
from parlaunch.errors import UsageError
from parlaunch.front import plan


@pytest.mark.parametrize(
    ("key", "text", "said", "hint"),
    [
        ("ddp.bucket_size", "abc", "'abc' is not a number", "ddp.bucket_size=8"),
        ("ddp.bucket_size", "[8]", "not a number", "ddp.bucket_size=8"),
        ("optimizer.lr", "fast", "not a number", "optimizer.lr=0.1"),
        ("ddp.overlap_grad_reduce", "maybe", "not True or False", "ddp.overlap_grad_reduce=True"),
        ("ddp.overlap_grad_reduce", "[True]", "not True or False", "ddp.overlap_grad_reduce=True"),
        ("peft.target_modules", "linear_qkv", "not a list", "peft.target_modules=[linear_qkv]"),
        ("model.cuda_graph_impl", "foo", "no value 'foo'", "one of: none, local"),
        ("model.transformer.cuda_graph_impl", "transformer-engine", "no value", "nearest: transformer_engine"),
        ("scheduler.lr_decay_style", "cosin", "no value 'cosin'", "nearest: cosine"),
        ("model.attention_backend", "flush", "no value 'flush'", "nearest: flash"),
        ("model.cross_entropy_fusion_impl", "foo", "no value 'foo'", "one of: native, te"),
        ("model.moe_token_dispatcher_type", "all2all", "no value", "nearest: alltoall"),
        ("model.cuda_graph_modules", "[attn,moe_rooter]", "no value", "one of: attn, mlp"),
        ("model.offload_modules", "[core_atn]", "no value", "nearest: core_attn"),
        ("ddp.data_parallel_sharding_strategy", "optim_grad", "no value", "nearest: optim_grads"),
        ("train.train_iters", "None", "a word", "train.train_iters=null"),
        ("model.cuda_graph_impl", "None", "no value 'None'", "nearest: none"),
        ("optimizer.exp_avg_dtype", "bf", "no value 'bf'", "nearest: bf16"),
        ("optimizer.optimizer", "adamw", "no value 'adamw'", "nearest: adam;"),
        ("optimizer.optimizer", "mun", "no value 'mun'", "nearest: muon;"),
    ],
)
def test_what_a_field_does_not_take_is_refused(key: str, text: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_values({key: text})
    assert said in caught.value.problem
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("ddp.bucket_size", "null"), ("ddp.bucket_size", "1_000_000"), ("train.train_iters", "1e3"), ("optimizer.lr", "1e-4"),
        ("optimizer.lr", "1"), ("optimizer.clip_grad", "inf"), ("ddp.overlap_grad_reduce", "1"), ("ddp.bucket_size", "${train.train_iters}"),
        ("model.attention_backend", "2"), ("model.attention_backend", "AttnBackend.flash"), ("logger.logging_level", "INFO"), ("train.exit_duration_in_mins", "237.5"), ("peft.target_modules", "[linear_qkv]"), ("model.no_such_field", "abc"),
        ("checkpoint.save", "7"), ("model.cuda_graph_impl", "none"), ("model.cuda_graph_modules", "[attn,moe_router]"),
        ("model.cuda_graph_scope", "full_iteration"), ("model.offload_modules", "[]"), ("optimizer.exp_avg_dtype", "torch.bfloat16"),
        ("model.moe_router_load_balancing_type", "[aux_loss,seq_aux_loss]"), ("model.cp_comm_type", "a2a+p2p"),
        ("optimizer.optimizer", "sgd"), ("optimizer.optimizer", "dist_muon"), ("optimizer.optimizer", "soap"), ("optimizer.optimizer", "null"),
    ],
)  # fmt: skip
def test_what_it_takes_is_handed_on(key: str, text: str) -> None:
    check_values({key: text})


def test_a_wrong_value_ends_a_command_before_it_plans() -> None:
    with pytest.raises(UsageError, match="no value 'foo'"):
        plan("llama3_8b_pretrain_config", "dgx-h100:1", overrides=("model.cuda_graph_impl=foo",))


def test_every_type_is_of_a_key_that_is_there() -> None:
    assert types().keys() <= shipped_keys()
