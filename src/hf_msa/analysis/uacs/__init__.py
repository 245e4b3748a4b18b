"""Tools for runs of U-ACS and of UBM, its small model."""
