"""Where pages live that are not in the pool: one interface, one file or folder for each kind of place."""
