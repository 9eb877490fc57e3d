"""Neuron-level masked knowledge editing of language models."""

__version__ = "0.1.0"
