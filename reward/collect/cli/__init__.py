"""`python -m reward.collect COMMAND`."""
