"""Training: a network with its loss and metrics (task), folds in turn (crossval), and the loop (trainer).

task, classification, detection   LightningModules
trainer                           one fold
crossval                          one network per fold, trained or reused
epochs                            which epoch is at work, for whoever shows it
build                             builds the task and reads the chips
speed                             seconds per training step
"""
