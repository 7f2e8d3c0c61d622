"""What more devices buy: one configuration trained on 1, 2, 4 ... devices, and what more would give.

settings   what scale.py is asked, checked
images     what is trained on: images made on the device, a folder of images, chips
worker     one rank of one run: trains for a fixed wall time, then measures its communication
launch     starts the ranks of a run: processes of this machine, or a job of Slurm
study      the grid of configurations: what is kept, what is absent, MLflow
results    speed-up, efficiency, hours and price of measured runs
model      a model of compute, bandwidth and latency that is fitted to them, and Amdahl's law
published  published figures to show beside them
"""
