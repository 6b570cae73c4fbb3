"""What a pipeline reads and needs, checked before its first stage trains."""
