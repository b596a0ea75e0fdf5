"""The case table: the shapes that tests and benchmarks share. A new operation adds its rows here, once."""

from __future__ import annotations

import collections
import dataclasses
import random


@dataclasses.dataclass(frozen=True)
class Gemm:
    """D[m,n] = A[m,k] @ B[n,k]^T."""

    m: int
    n: int
    k: int
    out_dtype: str = "bfloat16"

    @property
    def sizes(self) -> dict[str, int]:
        return {"m": self.m, "n": self.n, "k": self.k}

    def __str__(self) -> str:  # readable pytest ids
        return f"{self.m}x{self.n}x{self.k}-{self.out_dtype}"


@dataclasses.dataclass(frozen=True)
class Bf16Gemm(Gemm):
    """D[m,n] of operands that are transposed ("t") or not, A and B."""

    layout: str = "nt"

    @property
    def op(self) -> str:
        return f"bf16_gemm_{self.layout}"

    def __str__(self) -> str:
        return f"{self.layout}-{super().__str__()}"


# Projections of DeepSeek-V3, as (n, k).
WEIGHTS = ((2112, 7168), (576, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))

# The `dense` benchmark. Weights vary slowest, so that a benchmark can keep one weight matrix for all its m.
DENSE = tuple(Gemm(m, n, k) for n, k in WEIGHTS for m in (1, 16, 64, 128, 256, 1024, 4096))

# The `dgrad` benchmark: gradients of 4096 tokens, back through the same projections.
DGRAD = tuple(Gemm(4096, k, n) for n, k in WEIGHTS)

# The `wgrad` benchmark: gradients of weights, summed over k tokens and added to what other batches gave.
WGRAD = tuple(
    Gemm(m, n, k, "float32")
    for m, n, k in (
        (2112, 4096, 7168),
        (576, 4096, 7168),
        (24576, 4096, 1536),
        (32768, 4096, 512),
        (7168, 4096, 16384),
        (4096, 4096, 7168),
        (7168, 4096, 2048),
    )
)

# The `linear` benchmark: m tokens through a layer of n x k weights, and back.
LINEAR = (Gemm(4096, 7168, 4096), Gemm(4096, 2048, 7168))

# The `fp8_fp4` benchmark.
FP8_FP4 = tuple(Gemm(m, n, k) for n, k in ((7168, 16384), (24576, 1536), (4096, 7168)) for m in (1, 16, 64, 4096))

# Sizes that end inside a tile, a scale block or a TMA box.
ODD_M = (1, 3, 77, 129, 1000)
ODD_N = (24, 576, 2112)
ODD_K = (16, 144, 7168)
ODD = tuple(Gemm(m, n, k) for m in ODD_M for n in ODD_N for k in ODD_K)

EMPTY = (Gemm(0, 64, 128), Gemm(16, 0, 128), Gemm(16, 64, 0))


@dataclasses.dataclass(frozen=True)
class Cast:
    """x[m,k], quantised to FP8 or FP4 by the public function `op`."""

    op: str
    m: int
    k: int

    @property
    def sizes(self) -> dict[str, int]:
        return {"m": self.m, "k": self.k}

    def __str__(self) -> str:
        return f"{self.op}-{self.m}x{self.k}"


# The `cast` benchmark.
CASTS = tuple(
    Cast(op, m, k)
    for op in (*(f"per_{unit}_cast_to_fp8" for unit in ("token", "channel", "block")), "per_token_cast_to_fp4")
    for m, k in ((8192, 7168), (4096, 4096), (128, 7168))
)

LAYOUTS = ("nt", "nn", "tn", "tt")

# The `bf16` benchmark.
BF16 = tuple(Bf16Gemm(m, n, k) for n, k in WEIGHTS for m in (1, 64, 128, 1024, 4096)) + tuple(
    Bf16Gemm(4096, n, k, layout=layout) for layout in LAYOUTS[1:] for n, k in WEIGHTS
)

# Sizes that end inside a tile, a slab of 64 or a TMA box, by what each layout takes: rows are multiples of 8 elements.
BF16_ODD = tuple(
    Bf16Gemm(m, n, k, layout=layout)
    for layout in LAYOUTS
    for m in ((1, 3, 77, 129, 1000) if layout[0] == "n" else (8, 72, 136, 1000))
    for n in (136, 2112)
    for k in ((1, 65, 7001) if layout == "tn" else (8, 200, 7168))
)


@dataclasses.dataclass(frozen=True)
class RaggedDot:
    """lhs[m,k] by rhs[groups,k,n], in BF16 or, with operands quantised inside, in FP8."""

    groups: int
    m: int
    n: int
    k: int
    fp8: bool = False

    @property
    def op(self) -> str:
        return "ragged_dot in FP8" if self.fp8 else "ragged_dot"

    @property
    def sizes(self) -> dict[str, int]:
        return {"groups": self.groups, "m": self.m, "n": self.n, "k": self.k}

    def __str__(self) -> str:
        return f"{self.groups}x{self.m}x{self.n}x{self.k}-{'fp8' if self.fp8 else 'bf16'}"


# The `ragged_dot` benchmark.
RAGGED_DOTS = tuple(
    RaggedDot(groups, m, n, k, fp8)
    for groups, m, n, k in ((4, 32768, 6144, 7168), (8, 32768, 4096, 4096), (32, 6144, 4096, 4096))
    for fp8 in (False, True)
)


@dataclasses.dataclass(frozen=True)
class MoeMlp:
    """m tokens through top_k of as many gated MLPs of width n as there are groups, and back to width k."""

    m: int
    n: int
    k: int
    groups: int
    top_k: int

    @property
    def sizes(self) -> dict[str, int]:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}-{self.top_k}of{self.groups}"


# The `moe_mlp` benchmark: the widths of DeepSeek-V3.
MOE_MLPS = tuple(MoeMlp(m, 2048, 7168, 32, 8) for m in (4096, 128))


@dataclasses.dataclass(frozen=True)
class MGrouped:
    """Groups of about `rows` rows, A[i] @ B[g]^T for B [groups, n, k]: contiguous, or masked in `most` rows each.

    drawn: the rows of each group are random, else `rows`.
    """

    op: str
    groups: int
    rows: int
    n: int
    k: int
    drawn: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        return {"groups": self.groups, "rows": self.rows, "n": self.n, "k": self.k, "drawn": int(self.drawn)}

    @property
    def masked(self) -> bool:
        return self.op.endswith("masked")

    @property
    def most(self) -> int:
        """Rows of a masked group."""
        return 2048 if self.rows > 256 else 512

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Masked groups within 30 % of the mean, as in DeepGEMM's benchmark; others as experts get them."""
        draw = random.Random(self.groups * self.rows)
        if self.masked:
            return tuple(int(self.rows * draw.uniform(0.7, 1.3)) for _ in range(self.groups))
        if not self.drawn:
            return (self.rows,) * self.groups
        weights = [draw.gammavariate(4, 1) for _ in range(self.groups)]
        chosen = draw.choices(range(self.groups), weights, k=self.groups * self.rows)
        counted = collections.Counter(chosen)
        return tuple(counted[g] for g in range(self.groups))

    def __str__(self) -> str:
        return f"{self.op}-{self.groups}x{self.rows}x{self.n}x{self.k}{'-drawn' * self.drawn}"


# The `contiguous` and `masked` benchmarks: experts' projections, as (n, k).
EXPERTS = ((6144, 7168), (7168, 3072), (4096, 4096), (4096, 2048))


def contiguous(kind: str) -> tuple[MGrouped, ...]:
    op = f"m_grouped_{kind}_gemm_nt_contiguous"
    even = (MGrouped(op, groups, rows, n, k) for groups, rows in ((4, 8192), (8, 4096)) for n, k in EXPERTS)
    drawn = (
        MGrouped(op, groups, rows, 4096, 2048, drawn=True)
        for groups, rows in ((8, 4096), (32, 4), (32, 20), (32, 60), (256, 4), (256, 20), (256, 60))
    )
    return (*even, *drawn)


def masked(kind: str) -> tuple[MGrouped, ...]:
    op = f"m_grouped_{kind}_gemm_nt_masked"
    sizes = ((32, 192), (6, 1024), (32, 20), (6, 20))
    return tuple(MGrouped(op, groups, rows, n, k, drawn=True) for groups, rows in sizes for n, k in EXPERTS)


CONTIGUOUS, MASKED = contiguous("fp8"), masked("fp8")
BF16_CONTIGUOUS, BF16_MASKED = contiguous("bf16"), masked("bf16")
FP4_CONTIGUOUS, FP4_MASKED = contiguous("fp8_fp4"), masked("fp8_fp4")
# The `fp8_fp4_masked` benchmark: few rows, where weights are what is read.
FP4_FEW_ROWS = tuple(case for case in FP4_MASKED if case.rows == 20)


@dataclasses.dataclass(frozen=True)
class KGrouped:
    """D[g][m,n] for g groups that have k rows together, of FP8 or BF16 operands."""

    kind: str
    groups: int
    m: int
    n: int
    k: int
    out_dtype: str = "float32"

    @property
    def op(self) -> str:
        return f"k_grouped_{self.kind}_gemm_tn_contiguous"

    @property
    def sizes(self) -> dict[str, int]:
        return {"groups": self.groups, "m": self.m, "n": self.n, "k": self.k}

    def __str__(self) -> str:
        return f"{self.kind}-{self.groups}x{self.m}x{self.n}x{self.k}-{self.out_dtype}"


# The `k_grouped` benchmark: groups of about k / groups rows, drawn at random.
K_GROUPED = tuple(
    KGrouped(kind, groups, m, n, 32768)
    for kind in ("fp8", "bf16")
    for groups, m, n in ((4, 4096, 7168), (8, 7168, 2048), (16, 4096, 7168))
)

# Sizes that end inside tiles, slabs and boxes, few rows and many groups.
K_GROUPED_ODD = tuple(
    KGrouped(kind, groups, m, n, k)
    for kind in ("fp8", "bf16")
    for groups, m, n, k in (
        (1, 8, 8, 1),
        (4, 192, 3072, 768),
        (2, 1408, 1408, 384),
        (5, 136, 264, 333),
        (256, 512, 1032, 999),
    )
)
