"""Training: what the memory learns from, and how. Needs torch."""
