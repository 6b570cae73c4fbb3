"""Policies and scalar models: built, read, with or without adapters, tried out, saved."""
