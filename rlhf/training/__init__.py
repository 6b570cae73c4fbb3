"""What SFT and the reward model's training share: the trainer, its steps, its order of examples."""
