"""How flows are offered: server settings, deployments, the demo."""
