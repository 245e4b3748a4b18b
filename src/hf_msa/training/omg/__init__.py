"""Training of OMG-Agent: the stages, plans of rows, knowledge bases, and the adapter of a planner."""
