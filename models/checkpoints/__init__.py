"""The ways in: Hugging Face folders, GGUF files, released-code checkpoints, and where they are fetched from."""
