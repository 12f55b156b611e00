"""Functions of ours on input that may be hostile, in child processes that can be killed: start at pool.py."""
