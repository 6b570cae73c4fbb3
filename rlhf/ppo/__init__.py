"""PPO: loop.py is the algorithm step by step, update.py what a step learns from one rollout."""
