"""Accepts calls: checks their tenant's room and time, and takes each from its body to its response."""
