"""A process of the groups that test_processes.py starts: it computes, saves results, and may kill itself."""

import os
import pathlib
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import numpy as np

import lla_jax as lla
from lla_jax.curvature import lanczos
from lla_jax.execution import processes as hosts
from tests import helpers

SEED = 3  # no key here: jax must not begin before the group does
SIZES = (9, 14)


def flat(tree, lead=0):
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(*x.shape[:lead], -1) for x in leaves], -1)


def own(process, sizes):
    """The part of the data of a process."""
    start = sum(sizes[:process])
    return tuple(x[start : start + sizes[process]] for x in helpers.dataset(sum(sizes)))


def loss():
    """A loss with a kind of dropout, so that the indices of the examples matter."""

    def apply(p, state, batch, train, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (5,)))(keys)
        return helpers.apply(p, state, (batch[0] + 0.1 * noise, batch[1]), train)

    return lla.Loss(apply, helpers.cross_entropy, key=jax.random.key(8), penalty=lambda p: 0.1 * p["gain"] ** 2)


def numbers(process, sizes):
    """The numbers that one process alone must give too."""
    data, key = own(process, sizes), jax.random.key(SEED)
    H = lla.hessian(loss(), helpers.params(), data)
    v = H.random(key)
    run = lanczos.lanczos(H, key, 6)
    streamed = lla.hessian(
        loss(), helpers.params(), lla.stream([tuple(x[:4] for x in data), tuple(x[4:] for x in data)])
    )
    return {
        "product": flat(H.product(v)),
        "basis": flat(run.basis, 1),
        "alphas": run.alphas,
        "betas": run.betas,
        "streamed": flat(streamed.product(v)),
        "elsewhere": flat(H.at(helpers.params(5)).product(v)),
        "streamed elsewhere": flat(streamed.at(helpers.params(5)).product(v)),
    }


def refusals(process):
    """Messages of errors for arguments that differ between processes."""
    data, said = own(process, SIZES), []
    params = helpers.params(seed=process)
    H = lla.hessian(loss(), helpers.params(), data)
    for call in (
        lambda: lla.hessian(loss(), params, data),
        lambda: lla.ggn(loss(), helpers.params(), data, select="*/kernel" if process else "*/bias"),
        lambda: H.product(params),
        lambda: H.at(params),
    ):
        try:
            call()
        except ValueError as error:
            said.append(str(error))
    alone = lla.hessian(loss(), params, data, execution=lla.Execution(processes="own"))
    assert isinstance(alone, lla.LinearOperator)
    return {"said": np.array(said)}


def pairs(process, folder, die_at):
    """Eigenpairs, saved on the way by process 0; process 1 is killed at some product."""
    partial = os.path.join(folder, "partial.npz")

    def progress(products, total):
        if process == 1 and products == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def keep(begun):
        if process == 0:
            lla.save(begun, partial)

    H = lla.hessian(loss(), helpers.params(), own(process, SIZES))
    resume = lla.load(partial, like=helpers.params()) if os.path.exists(partial) else None
    begun = 0 if resume is None else resume.products
    found = lla.eigenpairs(
        H,
        jax.random.key(SEED),
        4,
        tol=1e-5,
        progress=progress,
        on_partial=keep,
        save_every=1e-6 if die_at == 8 else None,
        resume=resume,
    )
    return {"values": found.values, "residuals": found.residuals, "products": np.array([begun, found.products])}


def main(mode, process, num, port, folder):
    started = hosts.start(f"127.0.0.1:{port}", num, process)
    assert started is None
    if mode == "numbers":
        result = numbers(process, SIZES) | refusals(process)
    elif mode == "idle":  # process 0 vanishes while the others compute something of their own
        if process == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
        result = {}
    else:
        result = pairs(process, folder, int(mode))
    np.savez(os.path.join(folder, f"{mode}.{process}.npz"), **result)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
