#!/usr/bin/env bash
# A real training without a GPU: a tiny model of the recipe's family on four gloo ranks, TP 2 and PP 2, through Megatron's
# own process groups, 1F1B schedule and optimizer. Needs `pip install '.[cpu]'` from a checkout. Options are handed on:
#     examples/cpu_demo.sh --dry-run
set -euo pipefail
exec parlaunch --recipe llama32_1b_pretrain_config --device cpu --nproc-per-node 4 --tp 2 --pp 2 "$@"
