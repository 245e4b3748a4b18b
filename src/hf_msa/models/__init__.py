"""Models, configurations and processing: the part that is shipped to the Hub with every checkpoint."""
