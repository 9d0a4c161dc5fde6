"""What the model is: configuration, the PyTorch reference, the memory cells, and the ways in for checkpoints.

Importing this package imports no ML library; `lm2.models.lm2` and `lm2.models.memory` import torch when they are imported themselves.
"""
