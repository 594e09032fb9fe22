"""Averages over Gaussians and draws of them; knows no network."""
