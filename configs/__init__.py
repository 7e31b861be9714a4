"""The Hydra tree: one YAML for each command, and the groups task, policy and stage."""
