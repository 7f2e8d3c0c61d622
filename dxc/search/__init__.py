"""Searching a space of networks.

    settings       what the keys of conf/search.yaml may hold
    states         where a trial is, and how far it was trained
    space          axes in Hydra's sweep syntax -> points; the identity of a point
    costs          what is known of a network without training it
    space_summary  what a space holds, what limits rule out, how long it takes
    strategies     which point next: NNI's tuners behind one interface
    front          which point next: the front of several objectives (search.tuner=pareto)
    ledger         a study's state in MLflow, and who works on what
    trial          one trial, in whichever process a launcher starts
    launching      what launchers need: GPUs in turn, jobs that are over
    study          the loop: propose, check, launch, record

The Hydra plugin (hydra_plugins/nni_sweeper) is a thin shell over study.
"""
