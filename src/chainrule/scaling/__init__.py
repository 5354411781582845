"""Past one machine: the same trainings, searches and predictions by workers of a Ray cluster.

Nothing here trains, searches or predicts. Workers are started, each is told what a process alone would have been told,
and what becomes of them is told to whoever waits.
"""
