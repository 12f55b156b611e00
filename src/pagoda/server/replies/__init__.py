"""Reads what models write as thoughts, text and tool calls: start at reader.py."""
