"""Residual-stream activations: one forward pass per batch of prompts, read at every site."""
