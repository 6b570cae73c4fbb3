"""What a stage measures: in metrics.jsonl, in the terminal, in W&B, and what each name means."""
