"""Costs of a network on a device: predicted (nn-Meter), measured, profiled.

spec         description of a device: conf/hardware/NAME.yaml
onnx_file    an ONNX file, with weights that may lie in other files
network      a file's operators, shapes and multiply-accumulates
graph        an ONNX file as a torch module, which torch can profile
predict/     kernels of a file -> latency, by a package of predictors
calibrate/   makes a package of predictors for this machine
measure/     measures latency and memory in a fresh process, here or over SSH
profiling/   reduces traces to tables
costs        all costs of one file, for a training run
"""
