"""What trains a model: forward, backward, step, in one process or shared out by DeepSpeed."""
