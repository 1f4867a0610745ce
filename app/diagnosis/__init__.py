"""What is set up here and whether it works, looked at from outside, without one call of a model."""
