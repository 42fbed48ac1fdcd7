"""What the bits of a trained model depend on, and nothing else."""
