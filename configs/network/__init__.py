"""Config group `network`: what a policy from scratch is, `burnish.policies.diffusion.PolicyConfig`."""
