"""Writes the page of supported operators: ``python -m lla_torch.program.page > docs/operators.md``."""

from __future__ import annotations

import sys
from collections import defaultdict

from lla_torch.program.operators import TABLE  # filled by importing lla_torch

OPS = "lla_torch.program.ops"
GRAPH = "graph"  # operators that the conversion of a graph registers itself
SUBJECTS = {
    "linear": "Linear algebra and Fourier transforms",
    "attention": "Attention",
    "recurrent": "Recurrent layers",
    "embedding": "Embeddings",
    "convolution": "Convolutions",
    "pooling": "Pooling",
    "normalization": "Normalization",
    "resizing": "Resizing, padding, unfolding",
    "activations": "Activations",
    "pointwise": "Entry by entry",
    "extrema": "Bounds, and extrema of two tensors",
    "arithmetic": "Whole numbers, and parts of floats",
    "special": "Special functions",
    "bessel": "Bessel and Airy functions",
    "polynomials": "Orthogonal polynomials",
    "reductions": "Reductions",
    "ordering": "Sorting, searching, cumulative sums",
    "shapes": "Shapes",
    "parts": "Parts of a tensor",
    "indexing": "Indexing and scattering",
    "creation": "Making tensors",
    "random": "Random numbers",
    "dropout": "Dropout",
    "quantization": "Simulated quantization",
    "losses": "Losses",
    "derivatives": "Derivatives by `torch.autograd.grad` and `torch.func`",
    "ctc": "Connectionist temporal classification",
    GRAPH: "Sizes and marks",
}
"""Modules of ``lla_torch.program.ops`` in the order of the page."""

INTRODUCTION = """# Supported PyTorch operators

`lla_torch` converts a module by `torch.export`, which reduces it to ATen operators; this page lists the supported ones
(`python -m lla_torch.program.page > docs/operators.md` writes this page, and a test keeps it true). Most other
operators are decomposed into these by torch before. The rest is refused at conversion, with the module and the source
line, and can be added:

```python
import jax, lla_torch


@lla_torch.lowering("aten.erfinv.default")
def erfinv(x):
    return jax.scipy.special.erfinv(x)
```

Derivatives at single points, such as that of relu at 0, are torch's, with these exceptions:

- versions of torch differ in `clamp`, `clamp_min`, `clamp_max`, `fmax`, `fmin` and losses with a margin where the
  argument equals its bound: 2.13 gives the argument the derivative 1, 2.14 gives 0 at a bound that is a number, and 1/2
  each to two tensors. The torch that is installed at the conversion is asked, and the program keeps its answer;
- among equal entries `topk`, `kthvalue`, `sort`, `median` and what is made of them take the first by index. torch
  promises no order, and its own depends on the number of entries. So the values are torch's, and indices and gradients
  may belong to other, equal entries;
- where torch's second derivative is NaN and the first is not (norms, `normalize` and `cdist` at 0), ours is 0; where
  torch has a derivative for NaN inputs, ours may be another;
- torch 2.13 has the derivative 0 for `ldexp` by negative whole exponents; ours is right;
- torch gives `cholesky_solve` and `cholesky_inverse` a derivative by the triangle that they do not read, and a wrong
  one where that triangle is not 0; it gives one to the overwritten entries of `as_strided_scatter`, and to all entries
  that `index_put`, `scatter`, `index_copy` or `max_unpool` write to one place. Ours are those of what is computed.

Bessel, Airy and orthogonal polynomial functions are constants for torch's derivatives, and so they are here. `ctc_loss`
has torch's derivative, which is exact for log-probabilities from a log-softmax. torch has no second one; ours is exact.
`bincount` needs `minlength`; where a number lies beyond, all counts are -1 (NaN with weights).
"""


def page() -> str:
    """The page as Markdown: the introduction, and the operators of ``TABLE`` by subject."""
    subjects: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, entry in TABLE.items():
        module = entry.subject.rsplit(".", 1)[-1]
        if module not in SUBJECTS and entry.subject.startswith(OPS):
            raise ValueError(f"{entry.subject}: it has no title for the page; add one to SUBJECTS")
        namespace, op, overload = name.split(".")
        subject = module if module in SUBJECTS else GRAPH
        subjects[subject][op if namespace == "aten" else f"{namespace}.{op}"].append(overload)
    parts = [INTRODUCTION]
    for subject, title in SUBJECTS.items():
        ops = [
            f"`{op}`" if overloads == ["default"] else f"`{op}` ({', '.join(sorted(overloads))})"
            for op, overloads in sorted(subjects[subject].items())
        ]
        parts.append(f"\n## {title}\n\n{', '.join(ops)}\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
