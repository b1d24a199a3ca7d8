"""What is a tensor whose values were moved together? The places and channels that each of its parts came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from cakdp_ext.pruning.incremental.nodes import Block, Node, Rearrangement
from cakdp_ext.pruning.incremental.shadows import NONE
from cakdp_ext.pruning.incremental.sites import Sites
from cakdp_ext.pruning.incremental.tables import NotUnderstoodError

Piece = tuple[int, Tensor, Tensor, Tensor]
"""Number among the inputs, ``(n,)`` place of it behind each place, channels taken, channels that they become."""


def rearranged(nodes: Sequence[Node], elements: Tensor, owner_of: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Node:
    """Make a node of elements of others; most rows of a map hold none.

    Args:
        nodes: all so far.
        elements: ``(n, C)``.
        owner_of: gives the node of each element, and its number inside that node.

    Returns:
        The node; one that does not depend on any filter where all elements are constants.

    Raises:
        NotUnderstoodError: when a channel of it holds several channels of one node.
    """
    fixed = elements.clamp(max=NONE)
    rows = (elements >= 0).any(dim=1).nonzero().flatten()
    if not len(rows):
        return Node(Sites.alike(fixed), elements.shape[1])
    owner, inside = owner_of(elements[rows])
    numbers = [n for n in owner.unique().tolist() if n >= 0]
    pieces: list[Piece] = []
    for source, number in enumerate(numbers):
        node, is_mine = nodes[number], owner == number
        place = inside.div(node.width, rounding_mode="floor")
        channel = (inside - place * node.width).where(is_mine, NONE)
        reads = node.sites.label[place.where(is_mine, 0)].where(is_mine, node.sites.count)
        for read, taken, become in _columns_together(reads, channel, is_mine):
            everywhere = torch.full((len(elements),), node.sites.count, device=elements.device)
            pieces.append((source, everywhere.index_copy(0, rows, read), taken, become))
    constants = Sites.alike(fixed).label if bool((fixed != NONE).any()) else None
    return rearrangement([nodes[n] for n in numbers], numbers, elements.shape[1], pieces, constants)


def rearrangement(
    sources: Sequence[Node],
    numbers: Sequence[int],
    width: int,
    pieces: Sequence[Piece],
    constants: Tensor | None = None,
) -> Rearrangement:
    """Make a node of pieces of others.

    Args:
        sources: the nodes that it is made of.
        numbers: theirs.
        width: its channels.
        pieces: what comes from where.
        constants: ``(n,)`` a label of what every place holds beside them; None for zeros.
    """
    keys = [reads for _, reads, _, _ in pieces] + ([] if constants is None else [constants])
    sites = Sites.alike(torch.stack(keys, dim=1))
    return Rearrangement(
        sites,
        width,
        tuple(numbers),
        tuple(
            Block(source, reads[sites.representatives], taken, become, _counts_up(taken, sources[source].width))
            for source, reads, taken, become in pieces
        ),
        tuple(node.sites.count for node in sources),
        tuple(node.width for node in sources),
        constants is not None,
    )


def _columns_together(reads: Tensor, channel: Tensor, is_mine: Tensor) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """Sort the columns of a matrix by which places they are read from.

    Args:
        reads: ``(n, C)`` place behind each element; one number for none where it is another node's.
        channel: ``(n, C)`` its channel.
        is_mine: ``(n, C)`` whether it is this node's.

    Returns:
        For each sort the places ``(n,)``, the channels taken and the columns they become.

    Raises:
        NotUnderstoodError: when a column holds several channels.
    """
    columns = is_mine.any(dim=0).nonzero().flatten()
    highest = channel.amax(dim=0)
    if not ((channel == highest) | ~is_mine).all():
        raise NotUnderstoodError("channels that become places")
    kinds = Sites.alike(reads[:, columns].t().contiguous())
    for kind, one in enumerate(kinds.representatives.tolist()):
        mine = columns[kinds.label == kind]
        yield reads[:, columns[one]], highest[mine], mine


def _counts_up(channels: Tensor, width: int) -> bool:
    return len(channels) == width and torch.equal(channels, torch.arange(width, device=channels.device))
