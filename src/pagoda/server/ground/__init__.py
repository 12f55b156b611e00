"""Holds what every room of the server needs: messages, options, tenants, errors."""
