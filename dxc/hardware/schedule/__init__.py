"""Inter-operator scheduling: which operators of a network run side by side on one GPU, and what that gains.

Ding et al., IOS: Inter-Operator Scheduler for CNN Acceleration, MLSys 2021, arXiv 2011.01302.
"""
