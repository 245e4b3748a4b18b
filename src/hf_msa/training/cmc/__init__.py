"""Training of CMC: the stages, and the pseudo labels of the first one."""
