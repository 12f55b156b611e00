"""What models write, read back as thoughts, text and tool calls: start at reader.py."""
