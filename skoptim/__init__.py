"""skoptim."""
