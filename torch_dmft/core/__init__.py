"""Values without behaviour of their own: kernels, trajectories, activations, errors, files."""
