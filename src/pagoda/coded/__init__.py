"""Weights of fewer bits, held as they are stored: matrices of them, and layers that have one."""
