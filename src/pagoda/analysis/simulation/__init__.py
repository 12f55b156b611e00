"""Runs a trace through the cache and the scheduler with pages that hold no bytes."""
