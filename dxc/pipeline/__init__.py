"""The trunk: one configuration -> one Result.

run        reads from top to bottom like what a run does
heading    what a run is recorded under, and what is checked before
rung       a part of the protocol: a search's first look
result     what came out
"""
