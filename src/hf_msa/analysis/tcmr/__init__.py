"""Tools for runs of TCMR."""
