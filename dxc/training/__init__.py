"""Training: a network with its loss and metrics (task), folds in turn (crossval), and the loop (trainer).

task, classification, detection   LightningModules
trainer                           one fold
crossval                          one network per fold, trained or reused
engine                            graph or eager, and why
graph, on_device, side_by_side    the graph engine: steps as CUDA graphs, chips on the device, folds together
epochs                            which epoch is at work, for whoever shows it
build                             builds the task and reads the chips
speed, graph_speed                seconds per training step of either engine
"""
