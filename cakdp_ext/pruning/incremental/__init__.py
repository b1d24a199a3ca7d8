"""What is different without a filter? Differences, carried forward from where the filter was to the class logits.

==============  ======================================================================================
file            question
==============  ======================================================================================
recording       What did the forward compute? Layers, and the operators between them, as nodes.
escapes         Where do values leave the operators that are watched?
moves, shadows  Where did values go that were only moved? Followed through memory, views included.
rearranging     What is a tensor that was put together by moving?
sites           Which places hold the same whatever the weights are? They are computed once.
tables          What does a convolution read at every place?
nodes           How does a change pass through a layer, a norm, an activation, a sum, a concatenation?
product, delta  The arithmetic: gathered rows times weights, for several removals at once.
outputs         What do the class logits lose?
replay          ``IncrementalReplay``: record a forward, then ask for the gap without each filter.
witness         Does a whole forward without many filters agree, at every layer?
==============  ======================================================================================
"""

from cakdp_ext.pruning.incremental.replay import IncrementalReplay
from cakdp_ext.pruning.incremental.tables import NotUnderstoodError

__all__ = ["IncrementalReplay", "NotUnderstoodError"]
