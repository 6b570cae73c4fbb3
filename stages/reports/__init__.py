"""What is told of a policy: what evaluate compares and shows beside it, and an exported model's card."""
