"""What people do: items, turns, rankings, skips and what becomes of them."""
