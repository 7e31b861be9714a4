"""Config group `stage`: one YAML for each fine-tuning algorithm."""
