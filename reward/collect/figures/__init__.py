"""What the rankings say: agreement, annotators, comparisons, progress."""
