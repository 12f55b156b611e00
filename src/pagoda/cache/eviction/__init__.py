"""Which idle page goes when memory is short: one order per policy, from how each was used."""
