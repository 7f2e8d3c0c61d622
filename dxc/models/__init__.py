"""nn.Modules, and the registry that says what the rest of dxc must know about each. This file is free of torch.

registry    one entry a network; also free of torch
weights     weights of a trained network from a file
"""
