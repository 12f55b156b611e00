"""A tier of log segments in a folder: what lies where (`ledger.py`), files (`segment.py`, `folder.py`), and both."""
