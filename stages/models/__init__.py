"""The models that each stage begins with and ends with, and what they take."""
