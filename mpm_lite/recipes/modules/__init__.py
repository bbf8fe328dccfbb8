"""Modules that recipes are built of: connectors, the Q-Former, acquirers, parts of the diffusion model."""
