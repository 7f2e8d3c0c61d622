"""Hydra sweeper of dxc: `hydra/sweeper=nni`. Hydra discovers plugins in the namespace hydra_plugins only."""
