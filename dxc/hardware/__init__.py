"""What a model costs on a device: predicted (nn-Meter), measured, profiled.

spec         what hardware is: the facts of conf/hardware/NAME.yaml
onnx_file    an ONNX file with the weights beside it
network      a file's operators, shapes and multiply-accumulates
graph        a file as a torch module, so that torch can profile it
predict/     kernels of a file -> latency, by a package of predictors
calibrate/   a package for this machine
measure/     latency and memory in a fresh process, here or over SSH
profiling/   traces, reduced to tables
costs        all of it for one file: what a training run calls
"""
