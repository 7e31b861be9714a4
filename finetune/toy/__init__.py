"""RSM's toy experiment: densities sampled from their energies alone."""
