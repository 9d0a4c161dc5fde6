"""The way out: a model as an ONNX file, the custom op that it holds, and that op's library. Knows models/, never runtime/."""
