"""Searching a space of networks.

    settings       checks the keys of conf/search.yaml
    states         states of a trial, and rungs of training
    space          axes in Hydra's sweep syntax -> points; the identity of a point
    costs          costs of a network that are known before training
    space_summary  distinct trials of a space, what limits rule out, expected time
    strategies     proposes the next point: NNI's tuners behind one interface
    front          proposes the next point for a front of objectives (search.tuner=pareto)
    ledger         state of a study in MLflow, and locks on its trials
    trial          one trial, in a process that a launcher starts
    launching      Hydra's launchers: assigns GPUs, watches jobs
    study          the loop: propose, check, launch, record

The Hydra plugin (hydra_plugins/nni_sweeper) is a thin shell over study.
"""
