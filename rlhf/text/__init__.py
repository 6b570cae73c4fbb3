"""Dialogues as text and as token ids: the same ones in every stage and on every server."""
