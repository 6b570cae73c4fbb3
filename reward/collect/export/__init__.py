"""Numbered versions of a collection, sealed as artifacts."""
