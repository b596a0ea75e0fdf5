"""How the dimensions of an operation's operands and results belong together.

Sharding and batching follow from this one description. It is an einsum-like rule over named factors, in the notation
of Shardy: in `m (kb ki), m kb -> m` the second dimension of the first operand is `kb` blocks of `ki` elements, and the
second operand has one entry for each block. Only the first factor of a dimension is ever sharded or batched, so data
and scale stay aligned.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import PartitionSpec

Dims = tuple[tuple[str, ...], ...]  # the factors of each dimension of one array
Axes = tuple[str, ...]  # names of mesh axes


@dataclasses.dataclass(frozen=True)
class Factors:
    """`sizes` are needed for factors that occur only inside brackets.

    summed: factors that the operation sums over. Sharded, they leave partial sums.
    whole: factors that are never sharded.
    """

    rule: str
    sizes: tuple[tuple[str, int], ...] = ()
    summed: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()

    @functools.cached_property
    def operands(self) -> tuple[Dims, ...]:
        return _parse(self.rule.split("->")[0])

    @functools.cached_property
    def results(self) -> tuple[Dims, ...]:
        return _parse(self.rule.split("->")[1])

    def stacked(self) -> Factors:
        """Of arrays that all have one dimension more in front, the factor `batch`."""
        sides = (", ".join(f"batch {array}" for array in side.split(",")) for side in self.rule.split("->"))
        return dataclasses.replace(self, rule=" -> ".join(sides))

    def foldable(self) -> Iterator[str]:
        """Factors that a batch may be folded into: leading their dimension, in every result, not summed."""
        for factor, *_ in self.results[0]:
            everywhere = all(position(dims, factor) is not None for dims in self.results)
            if everywhere and factor not in self.summed + self.whole:
                yield factor

    def shardy(self, shapes: Sequence[Sequence[int]]) -> tuple[str, dict[str, Any]]:
        """Rule and keywords for `custom_partitioning`, which refuses factors of size 1 inside brackets."""
        sizes = _sizes(self, shapes)

        def dimension(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(n for n in names if len(names) == 1 or sizes[n] > 1) or names[:1]

        sides = [[[dimension(names) for names in dims] for dims in arrays] for arrays in (self.operands, self.results)]
        dimensions = [names for arrays in sides for dims in arrays for names in dims]
        alone = {names[0] for names in dimensions if len(names) == 1}
        bracketed = {n for names in dimensions for n in names} - alone
        rule = "->".join(
            ",".join(" ".join(n[0] if len(n) == 1 else f"({' '.join(n)})" for n in dims) for dims in arrays)
            for arrays in sides
        )
        present = dict.fromkeys(n for names in dimensions for n in names)  # in the order that Shardy numbers them
        return rule, {
            "reduction_factors": tuple(n for n in present if n in self.summed),
            "need_replication_factors": tuple(n for n in present if n in self.whole),
            **{n: sizes[n] for n in bracketed},
        }


def position(dims: Dims, factor: str) -> int | None:
    """The dimension that `factor` leads, or None."""
    return next((i for i, names in enumerate(dims) if names[0] == factor), None)


def assign(
    factors: Factors,
    mesh_shape: Mapping[str, int],
    operands: Sequence[tuple[Sequence[int], PartitionSpec]],
    results: Sequence[tuple[Sequence[int], PartitionSpec]] | None = None,
) -> dict[str, Axes]:
    """The mesh axes that each factor is sharded over, given the shape and the sharding of each array.

    Without `results`, their shardings are yet to be decided.

    A summed factor takes its axes if no operand uses them for something else (as when activations are sharded over
    rows and weights over K by the same axis: then the weights are gathered). The rest follow the results, then the
    operands. Axes that do not divide a factor evenly are left out, so a block is never cut.
    """
    chosen: dict[str, Axes] = {}
    used: set[str] = set()
    operand_uses = list(_uses(factors.operands, operands))
    result_uses = [] if results is None else list(_uses(factors.results, results))

    def take(factor: str, axes: Axes, size: int) -> None:
        fits = _dividing(axes, mesh_shape, size)
        if fits and factor not in chosen and factor not in factors.whole and not used.intersection(fits):
            chosen[factor] = fits
            used.update(fits)

    sizes = _sizes(factors, [shape for shape, _ in operands])
    for factor, axes in operand_uses:
        clash = any(other != factor and set(axes) & set(theirs) for other, theirs in operand_uses)
        if factor in factors.summed and not clash:
            take(factor, axes, sizes[factor])
    for factor, axes in result_uses + operand_uses:
        if factor not in (*factors.summed, *factors.whole):  # whole ones of results alone may have no size
            take(factor, axes, sizes[factor])
    return chosen


def spec(dims: Dims, axes: Mapping[str, Axes]) -> PartitionSpec:
    """The sharding of an array of these dimensions."""
    return PartitionSpec(*(axes.get(names[0]) for names in dims))


def _parse(side: str) -> tuple[Dims, ...]:
    dimension = re.compile(r"\(([^)]*)\)|(\S+)")
    return tuple(tuple(tuple((m[1] or m[2]).split()) for m in dimension.finditer(array)) for array in side.split(","))


def _uses(
    arrays: Sequence[Dims], shardings: Sequence[tuple[Sequence[int], PartitionSpec]]
) -> Iterator[tuple[str, Axes]]:
    for dims, (_, sharding) in zip(arrays, shardings, strict=True):
        for names, entry in zip(dims, sharding, strict=False):  # a spec may be shorter than the rank
            axes = (entry,) if isinstance(entry, str) else tuple(entry or ())
            if axes:
                yield names[0], axes


def _sizes(factors: Factors, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    sizes = dict(factors.sizes)
    for dims, shape in zip(factors.operands, shapes, strict=True):
        for names, size in zip(dims, shape, strict=True):
            if len(names) == 1:
                sizes[names[0]] = size
    return sizes


def _dividing(axes: Axes, mesh_shape: Mapping[str, int], size: int) -> Axes:
    while axes and size % math.prod(mesh_shape[a] for a in axes):
        axes = axes[:-1]
    return axes
