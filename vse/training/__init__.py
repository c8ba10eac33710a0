"""Training: the loop, what it writes down, and how it is stopped."""
