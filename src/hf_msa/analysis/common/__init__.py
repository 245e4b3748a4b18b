"""Tools for runs of any method, and what the tools of several methods share."""
