"""How good a reward model and a policy are: figures, their intervals, the page that shows them."""
