"""Reads what a body asks for: its fields, its conversation, the form of the output that is wanted."""
