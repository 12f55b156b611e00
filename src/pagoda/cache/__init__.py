"""The KV cache: which pages exist, who uses them, and which prefixes they hold."""
