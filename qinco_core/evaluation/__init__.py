"""How good a code is: errors, recall, exact neighbours, baselines of equal size, pictures."""
