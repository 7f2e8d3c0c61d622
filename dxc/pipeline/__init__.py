"""The trunk: one configuration -> one Result.

run        reads from top to bottom like what a run does
heading    name, params and tags of a run, and the checks before it
rung       partial training, which a search uses to stop early
result     what a run returns
"""
