"""Online fine-tuning: one loop, and a stage for each algorithm."""
