"""What the rivals of the curvature benchmark share, and those in jax: lla_jax and matfree.

A rival holds a network and its data (``__init__``, not timed) and does jobs. ``build`` is what every job begins with: a
graph, an operator. Eigenpairs are sought as shipped first, then with what ``tightened`` says until they are as accurate
as asked for. Products are counted, and cut at the deadline, where a rival lets us.
"""

from __future__ import annotations

import math
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import product_profile
from cases import curvature
from cases.curvature import Arrays

TOL = 1e-3
STEPS = 100
RTOL = 0.02
ENOUGH = 16  # draws before a standard error is believed: lla_jax's own rule, for all
ALWAYS = 10**9
FEW = 4
TRACE_S = 30.0  # seconds of drawing after which the rest is extrapolated: it goes with the square of the error
SAMPLED = 96  # our own draws, likewise


class TimeUp(Exception):
    """The rival's time is over."""


class Found(NamedTuple):
    """What a job gives: unit vectors in torch's order, or the nodes of a density, or a trace with its error."""

    vectors: list[Arrays] | None = None
    values: Any = None  # as the rival reports them
    sem: float | None = None
    products: int | None = None
    left_s: float = 0.0  # seconds that were not waited for


class Rival:
    """What all rivals share: the count of products and the time they may take."""

    products = 0
    cap = math.inf
    deadline = math.inf
    compiles = False  # the first job is slower than later ones
    compile_s = 0.0  # of the present job, where it is known apart
    build: Callable[[], Any]  # each rival's own: what its parts need, an operator or a graph
    more: dict[str, Any]  # what else a reader of the numbers must know

    def tick(self) -> None:
        """Called before every product where the rival lets us."""
        if time.perf_counter() > self.deadline:
            raise TimeUp
        self.products += 1

    def counted(self, f: Callable) -> Callable:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            return f(*args, **kwargs)

        return wrapped

    def seed(self) -> None:
        """Before every job: the same start vectors again."""

    def warm_up(self) -> None:
        """Before the first job."""

    def first(self, k: int) -> dict[str, Any]:
        """Options of ``top`` to begin with: as shipped, or as asked for."""
        return {"tol": TOL}

    def tightened(self, options: dict[str, Any], residual: float) -> dict[str, Any]:
        """Options for another try. Here: residuals go with the tolerance."""
        return {"tol": options["tol"] * min(0.5, 0.4 * TOL / residual)}

    def free(self, state: Any) -> None:
        """Let go of what ``build`` made."""

    def sampled(self, draw: Callable[[], float]) -> Found:
        """The mean of draws until its standard error is small enough; what is left after a while is extrapolated."""
        draws: list[float] = []
        start = time.perf_counter()
        while True:
            draws.append(draw())
            elapsed = time.perf_counter() - start
            if len(draws) < ENOUGH:
                continue
            mean, sem = float(np.mean(draws)), float(np.std(draws, ddof=1) / math.sqrt(len(draws)))
            if sem <= RTOL * abs(mean):
                return Found(values=mean, sem=sem, products=len(draws))
            if elapsed > TRACE_S:
                needed = math.ceil(len(draws) * (sem / (RTOL * mean)) ** 2)
                return Found(values=mean, sem=sem, products=needed, left_s=elapsed * (needed / len(draws) - 1))


# -- in jax ------------------------------------------------------------------------------------------------------------


class Ours(Rival):
    """lla_jax: the data over all devices, primal values kept, Lanczos with full re-orthogonalisation."""

    compiles = True

    def __init__(self, path: pathlib.Path, copies: bool = True):
        import jax

        self.problem, self.keys, self.key = curvature.jax_problem(path), curvature.trainable(path), jax.random.key(0)
        self.more, self.copies = {"devices": jax.device_count()}, copies

    def build(self) -> Any:
        import lla_jax as lla

        H = lla.hessian(*self.problem)
        self.more["plan"], self.rows = H.recipe["plan"]["text"], H.recipe["plan"]["rows"]
        return H

    def product(self, H: Any) -> Callable[[], Any]:
        import jax

        v = H.random(self.key)
        return lambda: jax.block_until_ready(H.product(v))

    def gradient(self) -> Callable[[], Any]:
        return product_profile.block_pass(self.problem, "gradient", self.rows, rewritten=True)

    def top(self, H: Any, k: int, tol: float) -> Found:
        import jax

        import lla_jax as lla

        pairs = lla.eigenpairs(H, self.key, k=k, tol=tol, copies=self.copies)
        trees = [jax.tree.map(lambda x, i=i: x[i], pairs.vectors.tree) for i in range(k)]
        vectors = [curvature.to_torch(tree, self.keys) for tree in trees]
        return Found(vectors, pairs.values.tolist(), products=pairs.products)

    def density_settings(self) -> list[tuple[str, dict]]:
        return [("full re-orthogonalisation, twice", {})]

    def density(self, H: Any, steps: int) -> Found:
        import lla_jax as lla

        spec = lla.spectrum(H, self.key, steps=steps, probes=1)
        return Found(values=spec.nodes[0], products=steps)

    def trace_settings(self) -> list[tuple[str, dict]]:
        return [(method, {"method": method}) for method in ("xtrace", "hutchinson")]

    def trace(self, H: Any, method: str) -> Found:
        import lla_jax as lla

        most = SAMPLED if method == "hutchinson" else 1000
        start = time.perf_counter()
        with warnings.catch_warnings():  # that it needs more is what is measured
            warnings.simplefilter("ignore")
            found = lla.trace(H, self.key, method=method, rtol=RTOL, max_products=most)
        elapsed, used = time.perf_counter() - start, found.recipe["products"]
        needed = math.ceil(used * max(1.0, (found.sem / (RTOL * found.mean)) ** 2)) if most == SAMPLED else used
        return Found(values=found.mean, sem=found.sem, products=needed, left_s=elapsed * (needed / used - 1))


class Matfree(Rival):
    """matfree, given the lean product a user would write: the gradient linearized once, inside the compiled job."""

    compiles = True

    def __init__(self, path: pathlib.Path):
        import jax
        import optax
        from jax.flatten_util import ravel_pytree

        loss, params, (x, y) = curvature.jax_problem(path)
        self.problem, self.keys, self.key = (loss, params, (x, y)), curvature.trainable(path), jax.random.key(0)
        self.flat, self.unravel = ravel_pytree(params)
        self.data = (jax.numpy.asarray(x), jax.numpy.asarray(y))
        self.state, self.more = loss.state, {"devices": 1}
        self.compiled: dict[Any, Any] = {}

        def mean_loss(flat: Any, state: Any, x: Any, y: Any) -> Any:
            scores = loss.apply(self.unravel(flat), state, (x, y), False)[0]
            return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()

        self.slope = jax.grad(mean_loss)

    def build(self) -> Any:
        return None

    def run(self, name: Any, f: Callable, v: Any = None) -> Any:
        """``f(product, flat vector)`` compiled with the weights and data as arguments; the compiling is timed apart."""
        import jax

        def whole(flat: Any, state: Any, x: Any, y: Any, v: Any) -> Any:
            _, product = jax.linearize(lambda p: self.slope(p, state, x, y), flat)
            return f(product, v)

        v = jax.random.normal(self.key, self.flat.shape) if v is None else v
        args = (self.flat, self.state, *self.data, v)
        if name not in self.compiled:
            start = time.perf_counter()
            self.compiled[name] = jax.jit(whole).lower(*args).compile()
            self.compile_s += time.perf_counter() - start
        return jax.block_until_ready(self.compiled[name](*args))

    def product(self, _: Any) -> Callable[[], Any]:
        return lambda: self.run("product", lambda product, v: product(v))

    def gradient(self) -> Callable[[], Any]:
        import jax

        compiled = jax.jit(self.slope)
        return lambda: jax.block_until_ready(compiled(self.flat, self.state, *self.data))

    def lanczos(self, steps: int) -> tuple[np.ndarray, np.ndarray, Any]:
        """(nodes, vectors in the basis, the basis as rows); not begun where a few steps say that it is too long."""
        from matfree import decomp

        def run(steps: int) -> Any:
            return self.run(steps, lambda product, v: decomp.tridiag_sym(steps, reortho="full")(product, v)[:2])

        if FEW not in self.compiled:
            run(FEW)
            start = time.perf_counter()
            run(FEW)
            self.step_s = (time.perf_counter() - start) / FEW
            self.compile_s += FEW * self.step_s  # the trial is no part of the job
        if steps * self.step_s > self.cap:
            raise TimeUp
        basis, matrix = run(steps)
        nodes, small = np.linalg.eigh(np.asarray(matrix, np.float64))
        return nodes, small, basis

    def first(self, k: int) -> dict[str, Any]:
        return {"steps": 10 * math.isqrt(k)}

    def tightened(self, options: dict[str, Any], residual: float) -> dict[str, Any]:
        return {"steps": 2 * options["steps"]}

    def top(self, _: Any, k: int, steps: int) -> Found:
        nodes, small, basis = self.lanczos(steps)
        best = np.argsort(-abs(nodes))[:k]
        vectors = small[:, best].T @ np.asarray(basis, np.float64)
        trees = [self.unravel(v.astype(np.float32)) for v in vectors]
        return Found([curvature.to_torch(tree, self.keys) for tree in trees], nodes[best].tolist(), products=steps)

    def density_settings(self) -> list[tuple[str, dict]]:
        return [("full re-orthogonalisation, twice", {})]

    def density(self, _: Any, steps: int) -> Found:
        return Found(values=self.lanczos(steps)[0], products=steps)

    def trace_settings(self) -> list[tuple[str, dict]]:
        return [("Hutchinson, until 2 %", {})]

    def trace(self, _: Any) -> Found:
        import jax
        from matfree import stochtrace

        keys = iter(jax.random.split(self.key, 10_000))
        integrand = stochtrace.monte_carlo_trace()

        def draw() -> float:
            sample = stochtrace.sampler_signs(self.flat, num=1)(next(keys))[0]
            return float(integrand(lambda v: self.run("product", lambda product, v: product(v), v), sample))

        return self.sampled(draw)
