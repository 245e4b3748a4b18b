"""Training of U-ACS."""
