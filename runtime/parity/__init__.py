"""Parity: two backends on the same tokens, measured side by side and held against gates. Knows backends by their contract only."""
