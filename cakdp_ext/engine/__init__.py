"""How is it run? From a YAML to trained, pruned, distilled, tested and measured detectors.

==================  ==========================================================================
question            module
==================  ==========================================================================
which frames        ``data``: splits, frames held out for scoring, samplers, loaders
which parts         ``build``: detectors, the compact student, the frozen teacher
one training step   ``step``: task losses and distillation (Eq. 7)
the loop            ``trainer``, ``schedule``: AMP, clipping, checkpoints, exact resume
the stages          ``train``, ``evaluate``, ``prune``, ``measure``, ``compress``
on disk             ``runs``: OpenPCDet's layout, logs; ``checkpoint``; ``report``
many processes      ``distributed``
commands            ``cli``: flags and errors that every tool shares
==================  ==========================================================================
"""
