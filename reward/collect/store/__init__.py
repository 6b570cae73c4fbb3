"""The database of a collection, its files, and the audit of every write."""
