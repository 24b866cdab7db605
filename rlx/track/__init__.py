"""Outputs of a run: metrics.jsonl is the record; the console, W&B, TensorBoard and the heartbeat are copies of it."""
