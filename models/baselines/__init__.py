"""What LM2 is compared with, trained by the same code on the same data: RMT, and a Llama with nothing but its window. For `lm2 eval` alone."""
