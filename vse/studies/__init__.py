"""Studies: many runs by one file, what they measure, and the tables and figures of it."""
