"""How fast hf_msa trains and evaluates, against the usual way of doing it and against what cannot be avoided."""
