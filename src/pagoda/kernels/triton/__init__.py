"""Kernels for GPUs in Triton: one source for all formats, layouts and reaches; runs on CPUs in Triton's interpreter."""
