"""Measuring what a memory is worth: answers with it and without it, on the same samples, on any backend."""
