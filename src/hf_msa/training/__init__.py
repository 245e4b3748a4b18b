"""Training through `transformers.Trainer`: recipes, stages per method, resume, several processes."""
