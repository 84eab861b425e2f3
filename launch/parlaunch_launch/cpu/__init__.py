"""Real Megatron training on gloo ranks: for a machine without GPUs, a first try, and the tests."""
