"""The trunk: one configuration -> one Result.

run        reads from top to bottom like what a run does
stages     what a stage and its artifact are, and their identities
networks   the stages that give a network a fold: train -> [prune -> finetune]
chain      all stages: these, then export -> [quantise] -> cost
kept       results of stages on disk, by identity
heading    what a run is recorded under, and what is checked before
rung       a part of the protocol: a search's first look
result     what came out
"""
