"""Multimodal sentiment analysis with missing modalities, as an extension of transformers."""
