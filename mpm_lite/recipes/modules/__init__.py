"""The modules that recipes are built from: connectors, the Q-Former, the parts of the diffusion model."""
