"""The operator ai.lm2::GatedMemoryUpdate, version 1: `reference` says what it computes, `function` writes it into ONNX files, `build` makes
the native library. docs/ops.md is its specification. ai.lm2::QLinear beside it (`qlinear`) is a product with a
matrix in blocks, which int8 and int4 exports are made of; ai.lm2::ChunkAttention (`chunk_attention`) is attention to caches;
ai.lm2::BlockSums (`sums`) serves 4-bit files exported before QLinear."""

DOMAIN = "ai.lm2"
NAME = "GatedMemoryUpdate"
VERSION = 1
INPUTS = ("i", "f", "z", "old")
OUTPUT = "new"
"""Names, domain and version as they stand in ONNX files."""
