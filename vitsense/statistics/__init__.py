"""Streaming statistics of weights and activations: moments and histograms that merge."""
