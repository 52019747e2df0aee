"""Contrast and transfer sets: bundled ones, hub datasets and files, and contrasts worth trying."""
