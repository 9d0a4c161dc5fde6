"""Sessions over a backend: chunking, memory state, sampling, text, state files and commands."""
