"""Kernels of the PyTorch model: operators `lm2::*` of torch.library, each with a plain PyTorch form, a Triton form, a shape-only form and, unless it
writes into its arguments, a gradient.

`choice` says which form runs; `update`, `norm`, `gated`, `released`, `attention`, `rotary` and `stream` hold the operators; `*_triton` hold the Triton code and are
imported when a kernel is first launched, so Triton is needed nowhere else.
"""
