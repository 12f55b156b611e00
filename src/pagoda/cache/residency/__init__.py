"""Decides which pages move between the pool and the tiers, and moves them beside the step loop."""
