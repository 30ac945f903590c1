"""The rivals of the curvature benchmark behind one interface, each called as its own documentation shows.

A rival holds a network and its data (``__init__``, not timed) and does jobs. ``build`` is what every job begins with: a
graph, an operator. The settings of a job are tried in turn, as shipped first, until the residuals asked for are met.
Peers are imported from where they lie; products are counted by wrapping their product function from outside.
"""

from __future__ import annotations

import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import networks
import numpy as np
import where
from networks import Arrays

TOL = 1e-3
STEPS = 100
RTOL = 0.02
ENOUGH = 16  # draws before a standard error is believed: lla_jax's own rule, for all
ALWAYS = 10**9


class TimeUp(Exception):
    """The rival's time is over."""


class Found(NamedTuple):
    """What a job gives: unit vectors in torch's order, or the nodes of a density, or a trace with its error."""

    vectors: list[Arrays] | None = None
    values: Any = None  # as the rival reports them
    sem: float | None = None
    products: int | None = None


class Rival:
    """What all rivals share: the count of products and the time they may take."""

    products = 0
    deadline = math.inf
    compiles = False  # the first job is slower than later ones
    compile_s = 0.0  # of the present job, where it is known apart
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

    def build(self) -> Any:
        raise NotImplementedError

    def free(self, state: Any) -> None:
        """Let go of what ``build`` made."""

    def sampled(self, draw: Callable[[], float]) -> Found:
        """The mean of draws until its standard error is small enough."""
        draws: list[float] = []
        while True:
            draws.append(draw())
            sem = float(np.std(draws, ddof=1) / math.sqrt(len(draws))) if len(draws) >= ENOUGH else math.inf
            if sem <= RTOL * abs(np.mean(draws)):
                return Found(values=float(np.mean(draws)), sem=sem, products=len(draws))


# -- in jax ------------------------------------------------------------------------------------------------------------


class Ours(Rival):
    """lla_jax: the data over all devices, primal values kept, Lanczos with full re-orthogonalisation."""

    compiles = True

    def __init__(self, path: pathlib.Path):
        import jax

        self.problem, self.keys, self.key = networks.jax_problem(path), networks.trainable(path), jax.random.key(0)
        self.more = {"devices": jax.device_count()}

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
        return where.block_pass(self.problem, "gradient", self.rows, rewritten=True)

    def top_settings(self, k: int) -> list[tuple[str, dict]]:
        # its tolerance is relative to the largest magnitude, the residuals asked for here to each value's own
        return [(f"tol {tol:g}", {"tol": tol}) for tol in (1e-3, 3e-4, 1e-4, 3e-5)]

    def top(self, H: Any, k: int, tol: float) -> Found:
        import jax

        import lla_jax as lla

        pairs = lla.eigenpairs(H, self.key, k=k, tol=tol)
        trees = [jax.tree_util.tree_map(lambda x, i=i: x[i], pairs.vectors.tree) for i in range(k)]
        vectors = [networks.to_torch(tree, self.keys) for tree in trees]
        return Found(vectors, pairs.values.tolist(), products=pairs.products)

    def density_settings(self) -> list[tuple[str, dict]]:
        return [("full re-orthogonalisation, twice", {})]

    def density(self, H: Any, steps: int) -> Found:
        import lla_jax as lla

        spec = lla.spectrum(H, self.key, steps=steps, probes=1)
        return Found(values=spec.nodes[0], products=steps)

    def trace_settings(self) -> list[tuple[str, dict]]:
        return [(method, {"method": method}) for method in ("hutchinson", "hutch++", "xtrace")]

    def trace(self, H: Any, method: str) -> Found:
        import lla_jax as lla

        found = lla.trace(H, self.key, method=method, rtol=RTOL)
        return Found(values=found.mean, sem=found.sem, products=found.recipe["products"])


class Matfree(Rival):
    """matfree, given the lean product a user would write: the gradient linearized once, inside the compiled job."""

    compiles = True

    def __init__(self, path: pathlib.Path):
        import jax
        import optax
        from jax.flatten_util import ravel_pytree

        loss, params, (x, y) = networks.jax_problem(path)
        self.problem, self.keys, self.key = (loss, params, (x, y)), networks.trainable(path), jax.random.key(0)
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

    def run(self, name: Any, f: Callable) -> Any:
        """``f(product, flat vector)`` compiled with the weights and data as arguments; the compiling is timed apart."""
        import jax

        def whole(flat: Any, state: Any, x: Any, y: Any, v: Any) -> Any:
            _, product = jax.linearize(lambda p: self.slope(p, state, x, y), flat)
            return f(product, v)

        args = (self.flat, self.state, *self.data, jax.random.normal(self.key, self.flat.shape))
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
        """(nodes, their vectors in the basis, the basis as rows)."""
        from matfree import decomp

        found = self.run(steps, lambda product, v: decomp.tridiag_sym(steps, reortho="full")(product, v)[:2])
        basis, matrix = found
        nodes, small = np.linalg.eigh(np.asarray(matrix, np.float64))
        return nodes, small, basis

    def top_settings(self, k: int) -> list[tuple[str, dict]]:
        return [(f"{steps} steps", {"steps": steps}) for steps in (10 * math.isqrt(k), 20 * math.isqrt(k), 40, 80, 160)]

    def top(self, _: Any, k: int, steps: int) -> Found:
        nodes, small, basis = self.lanczos(steps)
        best = np.argsort(-abs(nodes))[:k]
        vectors = small[:, best].T @ np.asarray(basis, np.float64)
        trees = [self.unravel(v.astype(np.float32)) for v in vectors]
        return Found([networks.to_torch(tree, self.keys) for tree in trees], nodes[best].tolist(), products=steps)

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
            return float(integrand(lambda v: jitted(v), sample))

        _, product = jax.linearize(lambda p: self.slope(p, self.state, *self.data), self.flat)
        jitted = jax.jit(product)
        return self.sampled(draw)


# -- in torch ----------------------------------------------------------------------------------------------------------


class TorchRival(Rival):
    def __init__(self, path: pathlib.Path):
        import torch

        self.net, self.x, self.y = networks.torch_problem(path)
        self.criterion = torch.nn.CrossEntropyLoss()
        self.params, self.more = list(self.net.parameters()), {}

    def gradient(self) -> Callable[[], Any]:
        import torch

        return lambda: torch.autograd.grad(self.criterion(self.net(self.x), self.y), self.params)

    def seed(self) -> None:
        import torch

        torch.manual_seed(0)

    def warm_up(self) -> None:
        state = self.build()
        self.product(state)()
        self.free(state)

    def random(self) -> list:
        import torch

        return [torch.randn(p.shape) for p in self.params]

    def free(self, state: Any) -> None:
        for p in self.params:
            p.grad = None  # it holds the graph


class PowerIteration(TorchRival):
    """LLA and PyHessian alike: one vector after another, until its value moves by less than ``tol`` in a step."""

    def top_settings(self, k: int) -> list[tuple[str, dict]]:
        shipped = [("as shipped: 100 iterations at most, tol 1e-3", {"iterations": 100, "tol": 1e-3})]
        return shipped + [(f"tol {tol:g}", {"iterations": ALWAYS, "tol": tol}) for tol in (1e-4, 1e-5, 1e-6, 1e-7, 0)]

    def top(self, state: Any, k: int, iterations: int, tol: float) -> Found:
        values, vectors = self.eigenvalues(state, iterations, tol, k)
        return Found([[part.numpy() for part in vector] for vector in vectors], values, products=self.products)

    def eigenvalues(self, state: Any, iterations: int, tol: float, k: int) -> Any:
        raise NotImplementedError


class LLA(PowerIteration):
    def __init__(self, path: pathlib.Path, checkout: pathlib.Path):
        super().__init__(path)
        sys.path.insert(0, str(checkout / "src"))
        from src_lla import metrics
        from src_lla.hessian import hessian

        hessian.hes_prod = self.counted(hessian.hes_prod)
        self.module, self.metric = hessian, metrics.Loss(self.criterion, self.x, self.y, "cpu")

    def build(self) -> Any:
        return self.module.hessian_calc(self.net, self.metric)

    def free(self, state: Any) -> None:
        state.reset()
        super().free(state)

    def product(self, state: Any) -> Callable[[], Any]:
        v = self.random()
        return lambda: self.module.hes_prod(state.grads, state.params, v)

    def eigenvalues(self, state: Any, iterations: int, tol: float, k: int) -> Any:
        return state.eigs_calc(n_iter=iterations, tol=tol, top_n=k)

    def density_settings(self) -> list[tuple[str, dict]]:
        return [("as shipped: against the last 11 vectors", {"window": 10}), ("against all vectors", {"window": STEPS})]

    def density(self, state: Any, steps: int, window: int) -> Found:
        return Found(values=np.sort(state.esd_calc(n_iter=steps, n_v=1, max_v=window)[0][0]), products=self.products)

    def trace_settings(self) -> list[tuple[str, dict]]:
        return [("as shipped", {})]

    def trace(self, state: Any) -> Found:
        return Found(values=float(state.tr_calc()), products=self.products)


class PyHessian(PowerIteration):
    def __init__(self, path: pathlib.Path, checkout: pathlib.Path | None):
        super().__init__(path)
        if checkout:
            sys.path.insert(0, str(checkout))
        import pyhessian  # its attribute "hessian" is the class, which hides the module

        self.module = sys.modules["pyhessian.hessian"]
        self.module.hessian_vector_product = self.counted(self.module.hessian_vector_product)
        self.make = pyhessian.hessian

    def build(self) -> Any:
        return self.make(self.net, self.criterion, data=(self.x, self.y), cuda=False)

    def product(self, state: Any) -> Callable[[], Any]:
        v = self.random()
        return lambda: self.module.hessian_vector_product(state.gradsH, state.params, v)

    def eigenvalues(self, state: Any, iterations: int, tol: float, k: int) -> Any:
        return state.eigenvalues(maxIter=iterations, tol=tol, top_n=k)

    def density_settings(self) -> list[tuple[str, dict]]:
        return [("full re-orthogonalisation, once", {})]

    def density(self, state: Any, steps: int) -> Found:
        return Found(values=np.sort(state.density(iter=steps, n_v=1)[0][0]), products=self.products)

    def trace_settings(self) -> list[tuple[str, dict]]:
        return [("Hutchinson, until 2 %", {})]

    def trace(self, state: Any) -> Found:
        return self.sampled(lambda: state.trace(maxIter=1, tol=0)[0])


class Batches(list):
    """Batches that tell when they are read: once a product."""

    tick: Callable[[], None] = staticmethod(lambda: None)

    def __iter__(self):
        self.tick()
        return super().__iter__()


class Curvlinops(TorchRival):
    """curvlinops with scipy's Lanczos (ARPACK), at the best of some batch sizes."""

    def __init__(self, path: pathlib.Path):
        super().__init__(path)
        times = {}
        for size in (len(self.y), 512, 256, 128):
            self.data = Batches(zip(self.x.split(size), self.y.split(size), strict=True))
            product = self.product(self.build())
            product()
            start = time.perf_counter()
            product()
            times[size] = time.perf_counter() - start
        best = min(times, key=lambda size: times[size])
        self.data = Batches(zip(self.x.split(best), self.y.split(best), strict=True))
        self.more["batch"] = best

    def build(self) -> Any:
        from curvlinops import HessianLinearOperator

        self.data.tick = lambda: None
        operator = HessianLinearOperator(self.net, self.criterion, self.params, self.data, check_deterministic=False)
        self.data.tick = self.tick
        return operator

    def product(self, operator: Any) -> Callable[[], Any]:
        import torch

        v = torch.randn(operator.shape[0])
        return lambda: operator @ v

    def top_settings(self, k: int) -> list[tuple[str, dict]]:
        return [(f"eigsh, tol {tol:g}", {"tol": tol}) for tol in (1e-3, 1e-4, 1e-5)]

    def top(self, operator: Any, k: int, tol: float) -> Found:
        from scipy.sparse.linalg import eigsh

        values, vectors = eigsh(operator.to_scipy(), k=k, which="LM", tol=tol)
        cuts = np.cumsum([p.numel() for p in self.params])[:-1]
        parts = [np.split(v, cuts) for v in vectors.T]
        shaped = [[part.reshape(p.shape) for part, p in zip(each, self.params, strict=True)] for each in parts]
        return Found(shaped, values.tolist(), products=self.products)

    def density_settings(self) -> list[tuple[str, dict]]:
        return [("no re-orthogonalisation", {})]

    def density(self, operator: Any, steps: int) -> Found:
        from curvlinops.papyan2020traces.spectrum import fast_lanczos

        return Found(values=np.sort(fast_lanczos(operator, steps)[0].numpy()), products=self.products)

    def trace_settings(self) -> list[tuple[str, dict]]:
        return [("Hutchinson, until 2 %", {})]

    def trace(self, operator: Any) -> Found:
        from curvlinops import hutchinson_trace

        return self.sampled(lambda: float(hutchinson_trace(operator, 1)))
