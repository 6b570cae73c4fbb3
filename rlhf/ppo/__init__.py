"""PPO: loop.py is the algorithm step by step; update.py is what the policy learns in one step, critic.py the critic."""
