"""What is known of prefixes: the tree of pages, snapshots of states, and what decides a page's bytes."""
