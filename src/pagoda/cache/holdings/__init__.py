"""Who uses, owns, leases and may evict the pages of one layer group."""
