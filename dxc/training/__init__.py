"""Training: a network with its loss and metrics (task), folds in turn (crossval), and the loop (trainer).

task, classification, detection   LightningModules
trainer                           one fold
crossval                          a network a fold, trained or kept from before
build                             task and chips of a configuration
speed                             seconds a step takes
"""
