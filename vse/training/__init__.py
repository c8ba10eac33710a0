"""Training: the loop, its log, and how a run starts and stops."""
