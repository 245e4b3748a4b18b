"""Tools for runs of PGLH."""
