"""Config group `task`: one YAML for each `burnish.envs.task.TaskConfig`."""
