"""Many runs from the same checkpoints: the grid, where it runs, and the report (= burnish.compare)."""
