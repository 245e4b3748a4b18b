"""Metrics, statistics, results files, tables, curves and comparisons; each is imported from its own module."""
