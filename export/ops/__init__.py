"""The operator ai.lm2::GatedMemoryUpdate, version 1: `reference` says what it computes, `function` writes it into ONNX files, `build` makes
the native library. docs/ops.md is its specification. ai.lm2::BlockSums beside it serves 4-bit exports (`sums`);
ai.lm2::QLinear (`qlinear`) is a product with a matrix in blocks, ai.lm2::ChunkAttention (`chunk_attention`) attention to caches."""

DOMAIN = "ai.lm2"
NAME = "GatedMemoryUpdate"
VERSION = 1
INPUTS = ("i", "f", "z", "old")
OUTPUT = "new"
"""Names, domain and version as they stand in ONNX files."""
