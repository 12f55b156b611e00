"""Attention over pages: one set of signatures, several backends."""
