"""Recordings in: from clips and a list of them to a prepared data set, and from clips to scores."""
