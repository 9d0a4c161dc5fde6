"""Looking into a memory: what was written into which row, what was kept, and what an answer read."""
