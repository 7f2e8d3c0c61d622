"""Configurations. Free of torch and mlflow, so that `--help` and the identity of a point are computed quickly.

compose    Hydra's configuration -> plain containers
plan       plain containers -> the typed Plan of one design, checked once
hardware   its section `hardware`
checked    typed classes of values, and the messages of values that cannot work
identity   what a configuration describes, and its hash
build      a section that names a class -> its object, if the class is allowed
names      short names of a configuration and its parts
hidden     keeps secrets of a command line out of the files that Hydra writes
"""
