"""The rivals in torch: LLA, PyHessian, hessian-eigenthings and curvlinops, each called as its own documentation shows.

They are imported from where they lie and not changed; products are counted by wrapping their product function from
outside, or the batches that it reads.
"""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cases import curvature
from cases.curvature import Arrays
from rivals.in_jax import ALWAYS, TOL, Found, Rival


class TorchRival(Rival):
    data: Batches  # of those that read batches

    def __init__(self, path: pathlib.Path):
        import torch

        self.net, self.x, self.y = curvature.torch_problem(path)
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

    def shaped(self, rows: np.ndarray) -> list[Arrays]:
        """Flat vectors, one a row, as lists in torch's order."""
        cuts = np.cumsum([p.numel() for p in self.params])[:-1]
        return [[part.reshape(p.shape) for part, p in zip(np.split(row, cuts), self.params)] for row in rows]

    def free(self, state: Any) -> None:
        for p in self.params:
            p.grad = None  # it holds the graph


class PowerIteration(TorchRival):
    """LLA and PyHessian alike: one vector after another, until its value moves by less than ``tol`` in a step."""

    eigenvalues: Callable[[Any, int, float, int], Any]  # (state, iterations, tol, k) -> (values, vectors)

    def first(self, k: int) -> dict[str, Any]:
        return {"iterations": 100, "tol": 1e-3}  # its defaults

    def tightened(self, options: dict[str, Any], residual: float) -> dict[str, Any]:
        """An eigenvalue's error goes with the square of the residual."""
        return {"iterations": ALWAYS, "tol": options["tol"] * min(0.5, 0.6 * (TOL / residual) ** 2)}

    def top(self, state: Any, k: int, iterations: int, tol: float) -> Found:
        values, vectors = self.eigenvalues(state, iterations, tol, k)
        return Found([[part.numpy() for part in vector] for vector in vectors], values, products=self.products)


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
        return [("as shipped: against the last 11 vectors", {"window": 10})]

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


def cut(rival: TorchRival) -> dict[str, Any]:
    """Give a rival the data in the better of two batch sizes, by the time of a product; says which."""
    times = {}
    for size in (len(rival.y), 256):
        rival.data = Batches(zip(rival.x.split(size), rival.y.split(size), strict=True))
        product = rival.product(rival.build())
        product()
        start = time.perf_counter()
        product()
        times[size] = time.perf_counter() - start
    best = min(times, key=lambda size: times[size])
    rival.data = Batches(zip(rival.x.split(best), rival.y.split(best), strict=True))
    return {"batch": best}


class Eigenthings(TorchRival):
    """hessian-eigenthings: Lanczos of a fixed number of steps, twice the pairs as shipped."""

    def __init__(self, path: pathlib.Path, checkout: pathlib.Path | None):
        super().__init__(path)
        if checkout:
            sys.path.insert(0, str(checkout))
        self.more |= cut(self)

    def build(self) -> Any:
        import hessian_eigenthings as module

        self.data.tick = lambda: None
        operator = module.HessianOperator(self.net, self.data, module.supervised_loss(self.criterion))
        self.data.tick = self.tick
        return operator

    def product(self, operator: Any) -> Callable[[], Any]:
        import torch

        v = torch.randn(operator.size)
        return lambda: operator.matvec(v)

    def first(self, k: int) -> dict[str, Any]:
        return {"steps": 2 * k}

    def tightened(self, options: dict[str, Any], residual: float) -> dict[str, Any]:
        return {"steps": 2 * options["steps"]}

    def top(self, operator: Any, k: int, steps: int) -> Found:
        from hessian_eigenthings import lanczos

        found = lanczos(operator, k=k, max_iter=steps, reorthogonalize=True, seed=0)
        return Found(self.shaped(found.eigenvectors.numpy()), found.eigenvalues.tolist(), products=self.products)

    def density_settings(self) -> list[tuple[str, dict]]:
        return [("full re-orthogonalisation, once", {})]

    def density(self, operator: Any, steps: int) -> Found:
        from hessian_eigenthings import spectral_density

        found = spectral_density(operator, num_runs=1, lanczos_steps=steps, seed=0)
        return Found(values=np.sort(found.raw_eigenvalues[0].numpy()), products=self.products)

    def trace_settings(self) -> list[tuple[str, dict]]:
        return [("Hutch++, 99 products as shipped", {})]

    def trace(self, operator: Any) -> Found:
        from hessian_eigenthings import trace

        found = trace(operator, num_matvecs=99, seed=0)
        return Found(values=found.estimate, sem=found.stderr, products=self.products)


class Curvlinops(TorchRival):
    """curvlinops with scipy's Lanczos (ARPACK), at the better of two batch sizes."""

    def __init__(self, path: pathlib.Path):
        super().__init__(path)
        self.more |= cut(self)

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

    def top(self, operator: Any, k: int, tol: float) -> Found:
        from scipy.sparse.linalg import eigsh

        values, vectors = eigsh(operator.to_scipy(), k=k, which="LM", tol=tol)
        return Found(self.shaped(vectors.T), values.tolist(), products=self.products)

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
