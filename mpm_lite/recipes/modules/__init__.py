"""The modules that recipes are built from: connectors, the Q-Former, acquirers, the parts of the diffusion model."""
