"""Tools for runs of OMG-Agent."""
