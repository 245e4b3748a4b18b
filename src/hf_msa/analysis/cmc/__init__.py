"""Tools for runs of CMC."""
