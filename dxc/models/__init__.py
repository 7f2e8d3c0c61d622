"""nn.Modules, and the registry that says what the rest of dxc must know of each. This file is free of torch.

registry    one entry a network; free of torch too
"""
