"""Claim: a store or a kept result that is damaged gives the same bits, or an error that names file and remedy.

    python benchmarks/damage.py [--quick]

A finished store of two grids, a sweep, and a folder of eigenpairs and a trace, finished or interrupted, are damaged at
random, 200 times each kind together: a byte is flipped; a file is cut, emptied, removed, exchanged with another one,
or with that of another loss, or dated in the future or the past; temporary files are left; the disk is full, or cannot
be written to or read from. After each, the same call must give the landscape of an undisturbed run to the bit, or an
error of ours that names a file and what to do, and after that the landscape; no number may be wrong, and no chunk that
was not damaged be computed again.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import pathlib
import random
import re
import shutil
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from harness import measure

TRIALS = 200
SUBJECTS = ("store", "sweep", "curvature", "interrupted curvature")
WRITING = ("open", "unlink", "remove", "rename", "replace", "link", "mkdir", "rmdir")
POINTS = 12  # of a chunk


# --- what is damaged


class Subject(NamedTuple):
    """A folder that is damaged, and the call that reads or continues it.

    Args:
      folder: as an undisturbed run leaves it.
      call: ``call(folder)`` gives the numbers, as bytes by name.
      expected: what ``call`` gave.
      other: a folder of the same kind, of another loss; it may not be there.
      reads: further calls that may fail by an error of ours alone.
    """

    folder: pathlib.Path
    call: Callable[[pathlib.Path], dict[str, bytes]]
    expected: dict[str, bytes]
    other: pathlib.Path
    reads: tuple[Callable[[pathlib.Path], Any], ...] = ()


def subjects(root: pathlib.Path, names: Sequence[str]) -> list[tuple[str, Subject]]:
    """The folders to damage, with their names, under ``root``."""
    import jax
    import numpy as np

    import lla_jax as lla
    from lla_jax.output import kept

    data = np.random.default_rng(0).normal(size=(32, 9)).astype("float32")
    params = {"w": np.ones((8, 4), "float32")}
    plan = lla.Execution(chunk=4, microbatch=32, loop="vmap", share=False, scan=False, devices=1)
    axes = lla.directions.random(jax.random.key(0), params)

    def loss(scale: float) -> Any:
        return lla.Loss(
            lambda params, state, batch, train: (jax.numpy.tanh(batch[:, :8] @ params["w"]).sum(1), state),
            lambda outputs, batch: scale * (outputs - batch[:, 8]) ** 2,
        )

    def bits(plane: Any) -> dict[str, bytes]:
        parts = {"values": plane.values, "stderr": plane.stderr}
        numbers = {f"{kind} {name}": z.tobytes() for kind, part in parts.items() for name, z in part.items()}
        return numbers | {"complete": bytes([plane.recipe["complete"]])}

    def plane(folder: pathlib.Path, scale: float = 1.0) -> dict[str, bytes]:
        for points in (5, 9):  # the second grid has points of the first
            last = lla.evaluate(loss(scale), params, data, axes, lla.grid(points=points), execution=plan, store=folder)
        return bits(last)

    def sweep(folder: pathlib.Path, scale: float = 1.0) -> dict[str, bytes]:
        grid = lla.grid(points=5)
        table = lla.sweep(loss(scale), [params], data, grid=grid, seeds=range(2), execution=plan, store=folder)
        return {
            f"{seed} {name}": z for seed in range(2) for name, z in bits(table[0, "filter-normalized", seed]).items()
        }

    def curvature(folder: pathlib.Path, scale: float = 1.0, stop: int | None = None) -> dict[str, bytes]:
        H, key = lla.hessian(loss(scale), params, data), jax.random.key(0)
        search = partial(lla.eigenpairs, H, key, 3)

        def stopped(**options: Any) -> Any:
            def progress(done: int, total: int | None) -> None:
                if done >= (stop or 0):
                    raise KeyboardInterrupt

            return search(**options | {"progress": progress})

        compute = search if stop is None else stopped
        pairs = kept.result(folder / "eigenpairs.npz", H.recipe, compute, {"k": "3"}, like=params)
        mean = kept.numbers(folder / "trace.json", H.recipe, lambda _: lla.trace(H, key).mean, {"method": "auto"})
        return {"values": pairs.values.tobytes(), "trace": repr(mean).encode()}

    def interrupted(folder: pathlib.Path, scale: float = 1.0) -> dict[str, bytes]:
        with contextlib.suppress(KeyboardInterrupt):
            curvature(folder, scale, stop=4)
        return {}

    reads = (lla.runs.status, lambda folder: lla.runs.merge(folder, partial=True))
    kinds = {
        "store": (plane, plane, reads),
        "sweep": (sweep, sweep, reads),
        "curvature": (curvature, curvature, ()),
        "interrupted curvature": (curvature, interrupted, ()),
    }
    found: list[tuple[str, Subject]] = []
    for name in names:
        call, begin, each = kinds[name]
        folder, other = root / name, root / f"other {name}"
        begin(folder)
        if each:
            begin(other, scale=2.0)
        shutil.copytree(folder, root / "undisturbed")
        found.append((name, Subject(folder, call, call(root / "undisturbed"), other, each)))
        shutil.rmtree(root / "undisturbed")
    return found


# --- damages: each changes a folder, and says which files it harmed


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: pathlib.Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path: pathlib.Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def fill(path: pathlib.Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(draw.randrange(1, 5000)))


def empty(path: pathlib.Path, draw: random.Random) -> None:
    path.write_bytes(b"")
    os.utime(path, (1, 1))


def remove(path: pathlib.Path, draw: random.Random) -> None:
    path.unlink()


def future(path: pathlib.Path, draw: random.Random) -> None:
    date = time.time() + draw.choice([100, 1e6, 1e9])
    os.utime(path, (date, date))


def past(path: pathlib.Path, draw: random.Random) -> None:
    os.utime(path, (1, 1))


def leave(path: pathlib.Path, draw: random.Random) -> None:
    for age in (-1e6, 0, 1e6):
        left = path.with_name(f".{path.stem}-{draw.randrange(10**6)}.tmp")
        left.write_bytes(b"half")
        os.utime(left, (time.time() - age,) * 2)


HARMS = (flip, flip, flip, cut, fill, empty, remove, future, past, leave)
HARMLESS = (future, past, leave)


@contextlib.contextmanager
def refusing(folder: pathlib.Path, code: int, draw: random.Random) -> Iterator[None]:
    """Every call that changes the folder fails; on a full disk only writing does, from some time on."""
    real = {name: getattr(os, name) for name in WRITING} | {"fsync": os.fsync}
    opened, left = builtins.open, draw.randrange(6) if code == errno.ENOSPC else 0

    def fail(path: Any) -> None:
        raise OSError(code, os.strerror(code), str(path))

    def change(name: str) -> Callable[..., Any]:
        def changed(path: Any, *rest: Any, **options: Any) -> Any:
            inside = str(folder) in str(path)
            if name == "open" and not (rest and rest[0] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)):
                inside = False
            if inside and (code != errno.ENOSPC or name == "mkdir"):
                fail(path)
            return real[name](path, *rest, **options)

        return changed

    def fsync(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            fail(handle)
        real["fsync"](handle)

    def open_file(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if str(folder) in str(file):
            writes = bool(set("wax+") & set(mode))
            if (code == errno.EROFS and writes) or (code == errno.EIO and not writes and ".npz" in str(file)):
                fail(file)
        return opened(file, mode, *rest, **options)

    try:
        if code == errno.ENOSPC:
            os.fsync = fsync
        elif code == errno.EROFS:
            for name in WRITING:
                setattr(os, name, change(name))
        builtins.open = io.open = open_file
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)
        builtins.open = io.open = opened


# --- a trial


def is_ours(error: BaseException, folder: pathlib.Path) -> bool:
    """Whether an error names an argument and a file or folder, and has a remedy after a semicolon or a full stop."""
    text = str(error)
    named = re.search(r"(store|path|resume|operator|settings): ", text) is not None
    return (
        isinstance(error, ValueError | OSError)
        and named
        and str(folder) in text
        and re.search(r"[;.] ", text) is not None
    )


def trial(name: str, subject: Subject, place: pathlib.Path, draw: random.Random) -> dict[str, Any]:
    """Damage a copy of the folder and call again: what was done, the error if there was one, and what went wrong."""
    import lla_jax as lla  # noqa: F401 (so that errors while importing are not taken for the call's)
    from lla_jax.landscape.store import chunks

    shutil.copytree(subject.folder, place)
    done: list[str] = []
    harmed: set[str] = set()
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        if not files(place):
            break
        path = draw.choice(files(place))
        kind = draw.choice([*(harm.__name__ for harm in HARMS), "exchange", "exchange with another loss's"])
        relative = path.relative_to(place)
        if kind == "exchange":
            second = draw.choice(files(place))
            contents = path.read_bytes(), second.read_bytes()
            path.write_bytes(contents[1])
            second.write_bytes(contents[0])
            harmed |= {str(relative), str(second.relative_to(place))} if path != second else set()
        elif kind.startswith("exchange"):
            if (subject.other / relative).exists():
                shutil.copy(subject.other / relative, path)
                harmed.add(str(relative))
        elif path.stat().st_size or kind in ("future", "past", "leave"):
            harm = next(harm for harm in HARMS if harm.__name__ == kind)
            harm(path, draw)
            harmed |= set() if harm in HARMLESS else {str(relative)}
        done.append(f"{kind} {relative}")
    code = draw.choice([None, None, None, errno.EROFS, errno.ENOSPC, errno.EIO])
    done += [errno.errorcode[code]] if code else []
    computed = Counter[str]()
    real = chunks.write

    def counted(*arguments: Any) -> None:
        real(*arguments)
        computed["chunks"] += 1

    errors: list[str] = []
    wrong: list[str] = []
    anew = False

    def attempt(call: Callable[[pathlib.Path], Any], what: str) -> tuple[Any, BaseException | None]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return call(place), None
        except Exception as error:
            if not is_ours(error, place):
                wrong.append(f"{what}: {''.join(traceback.format_exception(error))[-1500:]}")
            errors.append(f"{type(error).__name__}: {error}"[:300])
            return None, error

    chunks.write = counted
    try:
        with refusing(place, code, draw) if code else contextlib.nullcontext():
            for call in subject.reads:
                attempt(call, "read")
            result, error = attempt(subject.call, "call")
        for _ in range(4):  # the remedies: mend the disk, remove the file that is named
            if error is None:
                break
            remove_named(error, place)
            anew = anew or not place.exists()
            result, error = attempt(subject.call, "call after the remedy")
        if error is not None:
            wrong.append(f"the remedy does not help: {errors[-1]}")
        elif result != subject.expected:
            differ = [key for key in subject.expected if result.get(key) != subject.expected[key]]
            wrong.append(f"other values: {differ}")
        lost = sum(path.endswith(".npz") for path in harmed)
        if computed["chunks"] > lost and not anew and name in ("store", "sweep"):
            wrong.append(f"{computed['chunks']} chunks computed, and {lost} damaged")
    finally:
        chunks.write = real
        shutil.rmtree(place)
    if anew:
        done.append("began anew")
    return {"subject": name, "done": done, "errors": errors, "wrong": wrong}


def remove_named(error: BaseException, place: pathlib.Path) -> None:
    """Do what an error says: remove the file that it names, if it says so."""
    if isinstance(error, ValueError):
        for path in files(place):
            if "emove it" in str(error) and str(path) in str(error):
                path.unlink()
                return
        if "start anew" in str(error):
            shutil.rmtree(place)


def trials(
    count: int, seed: int, left: Callable[[], float] = lambda: 1.0, names: Sequence[str] = SUBJECTS
) -> list[dict[str, Any]]:
    """The results of a number of trials, over all subjects in turn."""
    from lla_jax.landscape.store import writing

    draw, real = random.Random(seed), writing._chunk_points
    writing._chunk_points = lambda *_: POINTS
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # forcing a file to disk takes longer than all else
    with tempfile.TemporaryDirectory(dir=memory) as folder, contextlib.ExitStack() as stack:
        stack.callback(setattr, writing, "_chunk_points", real)
        root = pathlib.Path(folder)
        every = subjects(root, names)
        results: list[dict[str, Any]] = []
        for i in range(count):
            if left() < 0:
                break
            name, subject = every[i % len(every)] if i % 3 else every[0]
            results.append(trial(name, subject, root / "damaged", draw))
        return results


def main() -> None:
    parser = measure.parser(__doc__, minutes=5)
    parser.add_argument("--seed", type=int, help="of the damages; another one each time by default")
    options = parser.parse_args()
    measure.start_jax(1)
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "big")
    count = 20 if options.quick else TRIALS
    path = measure.place(options, "damage")
    result = measure.begun(__doc__, options.threads) | {"seed": seed}
    results = trials(count, seed, measure.clock(options.minutes))
    faults = [each for each in results if each["wrong"]]
    for each in faults:
        print(each["subject"], each["done"], each["errors"], *each["wrong"], sep="\n  ")
    result |= {
        "damages": len(results),
        "recovered_at_once": sum(not each["errors"] for each in results),
        "recovered_after_the_remedy": sum(bool(each["errors"]) and not each["wrong"] for each in results),
        "wrong": faults,
    }
    result["targets"] = [
        measure.against("damages", result["damages"], count),
        measure.against("wrong numbers, foreign errors, or work lost", len(faults), 0, least=False),
    ]
    print(f"written: {measure.keep(path, result)}")


if __name__ == "__main__":
    main()
