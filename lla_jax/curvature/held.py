"""Decides what a product holds: scores of chunks or of all tokens, primal values kept, recomputed or rematerialised."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from lla_jax.core import losses
from lla_jax.core.arguments import Misuse
from lla_jax.core.rows import like
from lla_jax.core.text import first_line
from lla_jax.core.types import Batch, Recipe
from lla_jax.curvature import matrices, products
from lla_jax.curvature.products import Common, Multiplier, Rows
from lla_jax.execution import devices as _devices
from lla_jax.execution import heads

log = logging.getLogger("lla_jax")

KEPT_FRACTION = 0.25  # of the free memory, which primal values may take
WORK_FRACTION = 0.5  # of the free memory, which a product may work in
WORK = 3  # times the primal values of a block: they, their tangents, and what is computed of both
LITTLE = 2**8  # values, as large as the largest one, that the primal values of a block never are


class Held(NamedTuple):
    """What products hold.

    Args:
      by: the static part of the operator.
      blocks: the blocks of rows.
      keep: whether the primal values are kept between products.
      nbytes: their bytes, if so.
      text: all of this in words.
    """

    by: Multiplier
    blocks: list[Rows]
    keep: bool
    nbytes: int
    text: str


def chunk_heads(by: Multiplier, common: Common, batch: Batch, rows: int, row_bytes: int) -> tuple[Multiplier, Recipe]:
    """(the multiplier, with heads in chunks of tokens where that saves memory; an entry "heads" for the plan).

    Heads are looked for where a value of a block is so large that one could be there.

    Args:
      by: the multiplier.
      common: the loss and the parameters.
      batch: some rows.
      rows: rows of a block.
      row_bytes: bytes of the largest value per row.
    """
    assert by.matrix is not None
    assert by.mesh is not None
    nbytes = heads.CHUNK_BYTES[_devices.on_cpu(by.mesh)]
    if (
        by.matrix.kind == "fisher"
        or by.matrix.lowered
        or by.matrix.differences
        or row_bytes * rows < heads.LARGE * nbytes
    ):
        return by, {}
    matrix = replace(by.matrix, head_bytes=nbytes)
    block = losses.block_of_rows(like(batch, rows), np.arange(rows, dtype=np.int32))
    try:
        found = matrices.find_heads(matrix, common.loss, common.params, block)
    except Exception as error:  # an equation that cannot be evaluated for some tokens: nothing is lost but memory
        log.info("memory: all scores at once, since a head could not be cut: %s", first_line(error))
        return by, {}
    if not found:
        return by, {}
    entries = [{"tokens": head.num, "chunk": head.size, "bytes": head.nbytes} for head in found]
    return by._replace(matrix=matrix), {"heads": entries}


def choose(
    by: Multiplier,
    common: Common,
    blocks: list[Rows],
    linearize: bool | str,
    remat: bool | str,
    row_bytes: int,
    recut: Callable[[int], list[Rows]] | None,
) -> Held:
    """What the products of an operator over data in memory hold, from the free memory and what the user asks for.

    Args:
      by: the multiplier.
      common: the loss, the parameters and the data.
      blocks: the blocks as they are best.
      linearize: as in ``Execution``.
      remat: as in ``Execution``.
      row_bytes: bytes of the largest value per row.
      recut: ``recut(size)`` makes blocks of fewer rows; None where that must not be.
    """
    matrix = by.matrix
    assert matrix is not None
    if matrix.kind == "fisher" and remat is True:
        rule = "it is for the Hessian and the Gauss-Newton matrix: leave it out, or take a smaller batch_size"
        raise Misuse("execution.remat", f"True given for a Fisher matrix; {rule}")
    by = _remat(by) if remat is True else by
    if matrix.differences:
        return Held(by, blocks, False, 0, "not needed: finite differences of the gradient")
    keep, nbytes, text = _choose_linearize(by, common, blocks, linearize)
    if keep:
        too_large = linearize is True and nbytes > WORK_FRACTION * free_bytes(by)
        if remat == "auto" and too_large and matrix.kind != "fisher":
            by = _remat(by)
            nbytes = kept_bytes(by, common, blocks)
            text = f"kept where segments of the network meet ({_size(nbytes)})"
        return Held(by, blocks, keep, nbytes, text)
    if remat == "auto":
        by, size = fit_block(by, common, common.data, blocks[0].size, row_bytes, recut is not None)
        if size < blocks[0].size and recut is not None:
            blocks = recut(size)
    text += ", those inside of segments twice" if by.matrix is not None and by.matrix.remat else ""
    return Held(by, blocks, keep, nbytes, text)


def fit_block(
    by: Multiplier, common: Common, batch: Batch, rows: int, row_bytes: int, cuttable: bool
) -> tuple[Multiplier, int]:
    """(the multiplier, the rows of a block) with which a product fits into the free memory, if any do.

    A block that is too large gets fewer rows; where one row is too large, or batches must not be cut, the values
    inside of segments of the network are rematerialised.

    Args:
      by: the multiplier.
      common: the loss and the parameters.
      batch: some rows.
      rows: rows of a block.
      row_bytes: bytes of the largest value per row.
      cuttable: whether fewer rows may be taken.
    """
    assert by.mesh is not None
    room = WORK_FRACTION * free_bytes(by) / (by.mesh.size if _devices.on_cpu(by.mesh) else 1)
    if LITTLE * row_bytes * rows <= room:
        return by, rows
    needed = WORK * _block_bytes(by, common, batch, rows)
    if needed <= room:
        return by, rows
    if cuttable:
        while rows > 1 and needed > room:
            rows = max(1, min(rows // 2, int(rows * room / needed)))
            needed = WORK * _block_bytes(by, common, batch, rows)
        if needed <= room:
            log.info("memory: blocks of %d examples, whose products take about %s", rows, _size(int(needed)))
            return by, rows
    if by.matrix is None or by.matrix.kind == "fisher":
        return by, rows
    log.info(
        "memory: a product of %d example(s) would hold about %s of %s that may be used, so that the values inside of "
        "segments of the network are computed again where they are needed",
        *(rows, _size(int(needed)), _size(int(room))),
    )
    return _remat(by), rows


def _remat(by: Multiplier) -> Multiplier:
    assert by.matrix is not None
    return by._replace(matrix=replace(by.matrix, remat=True))


def free_bytes(by: Multiplier) -> int:
    """The free memory of a device; of a CPU that of the host."""
    assert by.mesh is not None
    return _devices.free_bytes(by.mesh.devices.flat[0])


def _block_bytes(by: Multiplier, common: Common, batch: Batch, rows: int) -> int:
    """Bytes of the primal values of a block of so many rows on one device, computed from their shapes."""
    here = by._replace(mesh=_devices.mesh_of(jax.local_devices()[:1]))
    common = common._replace(data=like(batch, rows), count=np.int32(rows))
    return kept_bytes(here, common, [Rows(np.zeros(1, np.int32), rows)])


def _choose_linearize(
    by: Multiplier, common: Common, blocks: list[Rows], linearize: bool | str
) -> tuple[bool, int, str]:
    """(whether to keep primal values, the bytes they take, both in words)."""
    if not linearize:
        return False, 0, "computed at every product"
    assert by.mesh is not None
    nbytes = kept_bytes(by, common, blocks)
    free = free_bytes(by) * (1 if _devices.on_cpu(by.mesh) else by.mesh.size)
    if linearize != "auto" or nbytes <= KEPT_FRACTION * free:
        return True, nbytes, f"kept ({_size(nbytes)})"
    return False, 0, f"computed at every product (kept, they would take {_size(nbytes)} of {_size(free)} that are free)"


def kept_bytes(by: Multiplier, common: Common, blocks: list[Rows]) -> int:
    """Bytes of the primal values of all blocks, computed from their shapes."""
    sizes = {
        (block.size, len(block.starts)): products.linearize.eval_shape(common, block.starts, by=by, size=block.size)
        for block in blocks[:1] + blocks[-1:]
    }

    def nbytes(block: Rows) -> int:
        values = sizes.get((block.size, len(block.starts)), next(iter(sizes.values())))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(values))

    return sum(map(nbytes, blocks))


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def in_words(plan: Recipe) -> str:
    """The chunks of the heads of a plan, to be added to its text."""
    parts = [f", {-(-head['tokens'] // head['chunk'])} chunks of scores" for head in plan.get("heads", ())]
    return "".join(parts)
