"""The metrics as a module of the `evaluate` library; the folder is what ``evaluate.load`` takes."""
