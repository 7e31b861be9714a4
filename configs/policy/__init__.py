"""Config group `policy`: one YAML for each kind of denoiser, `burnish.policies.diffusion.PolicyConfig`."""
