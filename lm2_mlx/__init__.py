"""The MLX mirror of LM2: the same model on Apple silicon, on a CPU or on CUDA. Imports neither torch nor onnx."""
