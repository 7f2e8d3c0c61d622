"""Configurations. Free of torch and mlflow, so that `--help` and the identity of a point cost nothing.

compose    Hydra's configuration -> plain containers
identity   what a configuration describes, and its hash
build      a section that names a class -> the object, if it is of the right kind
names      short names of a configuration and its parts
hidden     secrets of a command line, kept out of what Hydra writes
"""
