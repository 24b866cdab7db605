"""Where a run's numbers go: metrics.jsonl is the record, the console shows it, W&B mirrors it."""
