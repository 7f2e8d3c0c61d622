"""LightningModules and the trainer that runs them: what is optimised, measured and shown while training."""
