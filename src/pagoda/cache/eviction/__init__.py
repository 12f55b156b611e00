"""Which idle page goes when memory is short: one pure function per policy."""
