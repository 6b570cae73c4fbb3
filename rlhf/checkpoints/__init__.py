"""What an unfinished training goes on from: whole, or not there."""
