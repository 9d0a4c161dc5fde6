"""Families of decoders that can be converted, a file each: which fields their config.json has, and how their tensors become a Llama's."""
