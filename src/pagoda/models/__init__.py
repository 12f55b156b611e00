"""Hugging Face models made to use pages. The only package that imports transformers."""
