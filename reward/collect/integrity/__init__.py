"""Whether a collection is as it was written, and copies of it that are."""
