"""Defines the options of the command line; ``settings`` says what they stand for, and ``checks`` refuses mistakes.

This module imports no jax. The strings below the fields are the help texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

ADAM_B = (0.1, 2.0)  # as in modes.all_modes
MOST_POINTS = 2**27  # as in store/manifest.py, which needs jax


class Mistake(Exception):
    """An error that the user can correct; shown as one message instead of a traceback."""


def mistake(option: str, value: Any, rule: str) -> Mistake:
    """The error for an option that breaks a rule: ``--option: VALUE given; it must be RULE``.

    Args:
      option: its name, without the dashes.
      value: what was given.
      rule: what the option must be, with an example or another remedy.
    """
    return Mistake(f"--{option}: {value} given; it must be {rule}")


def _optional(metavar: str, default: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class DemoOptions:
    """Train a small network on handwritten digits, in a minute, and draw its loss landscape."""

    out: Path = Path("lla-demo")
    """Folder for the pictures and results."""
    seed: int = 0
    """Seed of the network, its training and the random directions."""
    points: int = 41
    """Points per axis of the line and the plane; an odd number puts one on the trained network."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class LandscapeOptions:
    """Compute and draw the loss landscape around your own network.

    Write a function without arguments that returns lla_jax.Problem(loss, params, data), and name it: --problem
    my_module:my_function. For a torch module it returns lla_torch.problem(module, criterion, loader). Or try --problem
    lla_jax.demo:problem. After any interruption (Ctrl-C, a kill, a full disk) the same command continues; with a wider
    or denser grid it reuses the points there are.
    """

    problem: str
    """The factory, MODULE:FUNCTION or FILE.py:FUNCTION, a function that returns lla_jax.Problem or lla_torch.problem;
    modules are also looked for in the current folder."""
    out: Annotated[Path | None, _optional("PATH", "run; run-2, ... if that has another landscape")] = None
    """Folder for the finished chunks, the result (landscape.npz) and the pictures."""
    axes: Literal["random", "hessian", "adam", "gradient", "checkpoints"] = "random"
    """Random Gaussian directions; eigenvectors of the Hessian; Adam's moments m and v; the gradient and a direction
    orthogonal to it; differences to the checkpoints."""
    which: Annotated[
        Literal["magnitude", "largest", "smallest", "ends"] | None,
        _optional("{magnitude,largest,smallest,ends}", "magnitude"),
    ] = None
    """Which eigenvalues --axes hessian takes: of largest magnitude, the largest, the smallest (most negative), or the
    largest and the smallest one (--dims 2)."""
    dims: Literal[1, 2, 3] = 2
    """Number of axes: a line, a plane or a volume."""
    points: tuple[int, ...] = (41,)
    """Points per axis: one number, or one for each axis."""
    extent: Annotated[float | None, _optional("FLOAT", "1")] = None
    """The axes reach from -extent to extent, in units of the direction."""
    range: Annotated[
        tuple[tuple[float, float], ...],
        _optional("LOW HIGH [LOW HIGH ...]", "by --extent; -0.5 1.5 for checkpoints, 0.1 2 for b of --rule adam"),
    ] = ()
    """The ends of each axis one by one, instead of --extent."""
    normalize: Annotated[
        Literal["filter", "layer", "weight", "model", "none"] | None,
        _optional("{filter,layer,weight,model,none}", "filter; none for hessian, checkpoints and --rule adam"),
    ] = None
    """How the directions are scaled by the weights they move."""
    order: Annotated[Literal[1, 2] | None, _optional("{1,2}", "2")] = None
    """Order of the norms in --normalize."""
    one_dim: Annotated[Literal["vector", "entry", "zero"] | None, _optional("{vector,entry,zero}", "vector")] = None
    """Biases and normalization layers in --normalize: as one vector, entry by entry, or not moved at all."""
    select: Annotated[tuple[str, ...], _optional("GLOB [GLOB ...]", "all parameters")] = ()
    """Move only parameters whose path matches one of these, such as '**/kernel' (quoted); all others stay frozen."""
    rule: Literal["add", "adam"] = "add"
    """Parameters at a point: theta + a d1 + b d2, or Adam's step theta + (a / sqrt(b)) m / (sqrt(v) + eps)."""
    batch_size: Annotated[int | None, _optional("INT", "all at once")] = None
    """Examples per batch."""
    batch_stats: Literal["frozen", "batch", "reestimate"] = "frozen"
    """BatchNorm statistics: as trained, of each batch, or re-estimated at each point (best between checkpoints)."""
    seed: int = 0
    """Seed of the random directions."""
    devices: Annotated[int | None, _optional("INT", "all; on a CPU, one per core")] = None
    """Number of devices that the points are split over."""
    precision: Literal["highest", "high", "default"] = "highest"
    """Precision of matrix products: float32; high and default take fewer bits on a TPU or GPU, which is faster. On a
    CPU all three are float32."""
    shard: Annotated[str | None, _optional("I/N", "all")] = None
    """Compute only shard I of N, such as 3/16, beside other processes with the same --out; then run lla-jax merge."""
    refine: Annotated[float | None, _optional("RTOL", "all points")] = None
    """Evaluate only the points that the surface needs, and interpolate the others, until their error is below RTOL of
    the range, such as 0.01."""
    cap: Annotated[float | None, _optional("FLOAT", "no cap")] = None
    """In the pictures, draw larger values as this one (planes and volumes); the saved values stay as they are."""
    log: bool = False
    """Logarithmic scale in the pictures; by default it is chosen if positive values span a factor over 1000."""
    no_log: bool = False
    """Linear scale in the pictures, however far the values span."""
    overwrite: bool = False
    """Start anew even if the folder has a result, finished or interrupted."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class HessianOptions:
    """Compute the curvature of your own network: eigenvalues, spectral density, trace, criteria, and layer by layer.

    --problem is as for the verb landscape. After Ctrl-C the same command continues.
    """

    problem: str
    """The factory, MODULE:FUNCTION or FILE.py:FUNCTION, a function that returns lla_jax.Problem or lla_torch.problem;
    modules are also looked for in the current folder."""
    out: Path = Path("run")
    """Folder for the results (eigenpairs.npz, spectrum.npz, hessian.json, hessian.txt) and the pictures."""
    matrix: Literal["hessian", "ggn", "fisher", "empirical-fisher"] = "hessian"
    """The Hessian; the generalized Gauss-Newton matrix; the Fisher matrix with targets drawn from the model, or from
    the data."""
    product: Literal["exact", "finite-difference"] = "exact"
    """Products of the Hessian by automatic differentiation, or by differences of the gradient, for a loss without a
    second derivative, such as a fused kernel; their error is measured and stated."""
    top: int = 5
    """Number of eigenpairs; all of them, if there are fewer than by default."""
    which: Literal["magnitude", "largest", "smallest"] = "magnitude"
    """Which eigenpairs: of largest magnitude, the largest, or the smallest (most negative)."""
    tol: float = 1e-3
    """Largest residual |Hv - lambda v| of an eigenpair, relative to the largest eigenvalue."""
    no_copies: bool = False
    """Do not look for further copies of the eigenvalues found: about a fifth fewer products, and a repeated
    eigenvalue is found once."""
    start: Annotated[Path | None, _optional("FILE", "random vectors")] = None
    """Eigenpairs to begin with, such as eigenpairs.npz of an earlier checkpoint; fewer products if little changed."""
    steps: int = 100
    """Lanczos steps per probe of the spectral density."""
    probes: int = 4
    """Random vectors of the spectral density; more than one gives its criteria a standard error."""
    trace: Literal["xtrace", "hutch++", "hutchinson"] = "xtrace"
    """Method that estimates the trace. xtrace and hutch++ hold a vector of the parameters' size for each draw and need
    far fewer draws; hutchinson holds two vectors."""
    rtol: float = 0.02
    """Standard error of the trace, relative to the trace, at which the estimate stops."""
    layers: bool = False
    """Also compute trace and extreme eigenvalues of every layer's block: some ten products for each layer."""
    select: Annotated[tuple[str, ...], _optional("GLOB [GLOB ...]", "all parameters")] = ()
    """Take only the block of parameters whose path matches one of these, such as '**/kernel' (quoted)."""
    batch_size: Annotated[int | None, _optional("INT", "as suits the machine")] = None
    """Examples per block of a product."""
    batch_stats: Literal["frozen", "batch"] = "frozen"
    """BatchNorm statistics: as trained, or of each batch."""
    seed: int = 0
    """Seed of the random vectors."""
    devices: Annotated[int | None, _optional("INT", "all accelerators; on a CPU one, with all cores")] = None
    """Number of devices that the examples are split over."""
    precision: Literal["highest", "high", "default"] = "highest"
    """Precision of matrix products: float32; high and default take fewer bits on a TPU or GPU, which is faster. On a
    CPU all three are float32."""
    overwrite: bool = False
    """Start anew even if the folder has results, finished or interrupted."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class PathOptions:
    """Show where a training went: its checkpoints on the plane of their two largest principal components.

    --problem is as for the verb landscape. For each checkpoint there are its own loss, that of its projection on the
    plane, and its distance from it; the shares of the components stand beside those of a random walk. After any
    interruption the same command continues.
    """

    problem: str
    """The factory, MODULE:FUNCTION or FILE.py:FUNCTION, a function that returns lla_jax.Problem or lla_torch.problem;
    modules are also looked for in the current folder."""
    checkpoints: Annotated[
        tuple[str, ...], _optional("FILES [FILES ...]", "Problem.checkpoints, and Problem.params as the last one")
    ] = ()
    """Checkpoints in the order of training: .npz or .safetensors files, folders of orbax or of lla.paths.record, or
    patterns such as 'ckpt/*.npz' (quoted), in the order of their numbers; files of torch for an lla_torch.problem. The
    plane lies around the last one."""
    out: Path = Path("run")
    """Folder for the results (path.txt, path.json, axes.npz, seen.npz, plane.npz) and the pictures."""
    points: tuple[int, ...] = (41,)
    """Points per axis of the plane: one number, or one for each of the two axes."""
    margin: float = 0.2
    """How far the plane reaches beyond the path on every side, relative to its extent."""
    batch_size: Annotated[int | None, _optional("INT", "all at once")] = None
    """Examples per batch."""
    batch_stats: Literal["frozen", "batch", "reestimate"] = "frozen"
    """BatchNorm statistics: those of each checkpoint (of the last one on the plane), of each batch, or re-estimated at
    each point."""
    curvature: Annotated[
        tuple[Literal["trace", "lambda_max", "lambda_min"], ...], _optional("NAME [NAME ...]", "none")
    ] = ()
    """Curvature at the checkpoints: trace, lambda_max, lambda_min of the Hessian; ten products or more for each."""
    every: Annotated[int | None, _optional("INT", "1")] = None
    """Compute the curvature at every so many checkpoints."""
    film: Annotated[
        Literal["gif", "mp4", "html"] | None, _optional("[{gif,mp4,html}]", "no film; --film alone: gif")
    ] = None
    """Also film the descent over the plane, as descent.gif, .mp4 (by ffmpeg) or .html."""
    frames: Annotated[int | None, _optional("INT", "60")] = None
    """Frames of the film; time is in proportion to steps."""
    seed: int = 0
    """Seed of the random vectors of --curvature."""
    devices: Annotated[int | None, _optional("INT", "all; on a CPU, one per core")] = None
    """Number of devices that the points are split over."""
    precision: Literal["highest", "high", "default"] = "highest"
    """Precision of matrix products: float32; high and default take fewer bits on a TPU or GPU, which is faster. On a
    CPU all three are float32."""
    cap: Annotated[float | None, _optional("FLOAT", "no cap")] = None
    """In the pictures, draw larger values as this one; the saved values stay as they are."""
    log: bool = False
    """Logarithmic scale in the pictures; by default it is chosen if positive values span a factor over 1000."""
    no_log: bool = False
    """Linear scale in the pictures, however far the values span."""
    overwrite: bool = False
    """Start anew even if the folder has a result, finished or interrupted."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class ConnectOptions:
    """Find out whether two solutions are connected: train a curve between them along which the loss stays low.

    --problem is as for the verb landscape; the ends are Problem.params and a second solution. The barrier of the curve
    stands beside that of the straight line, each with its standard error. After any interruption the same command
    continues.
    """

    problem: str
    """The factory, MODULE:FUNCTION or FILE.py:FUNCTION, a function that returns lla_jax.Problem or lla_torch.problem;
    modules are also looked for in the current folder."""
    checkpoint: Annotated[Path | None, _optional("FILE", "Problem.checkpoints[0] and Problem.states[0]")] = None
    """The second solution: a file or folder as for lla-jax path --checkpoints, with its BatchNorm statistics."""
    out: Path = Path("run")
    """Folder for the results (curve.npz, line.npz, barrier.npz, connect.txt, connect.json) and the pictures."""
    kind: Literal["bezier", "polygon", "band"] = "bezier"
    """A Bezier curve, a chain of straight pieces, or a nudged elastic band, which finds the saddle between the ends."""
    steps: int = 1000
    """Steps of the training."""
    control_points: Annotated[int | None, _optional("INT", "3; of a band, as the library chooses")] = None
    """Control points of the curve, both ends included; of a band, the pivots between the ends at the start."""
    batch_size: Annotated[int | None, _optional("INT", "all at once")] = None
    """Examples per step of the training, and per batch of the evaluation."""
    learning_rate: Annotated[float | None, _optional("FLOAT", "by the distance of the ends, with a schedule")] = None
    """Constant learning rate of Adam."""
    weight_decay: float = 0.0
    """Weight decay at the point of the curve that a step draws."""
    save_every: int = 1
    """Steps of the training after which its state is written, all of which a kill may lose; more for large networks."""
    points: int = 25
    """Points along the line and the curve, both ends included; more are taken around their maxima."""
    plane_points: int = 31
    """Points per axis of the plane through both ends and the middle of the curve; 0 draws none."""
    batch_stats: Annotated[
        Literal["frozen", "batch", "reestimate"] | None,
        _optional("{frozen,batch,reestimate}", "reestimate, where there are some"),
    ] = None
    """BatchNorm statistics along the curve: interpolated between those of the ends, of each batch, or re-estimated."""
    seed: int = 0
    """Seed of the training."""
    devices: Annotated[int | None, _optional("INT", "all; on a CPU, one per core")] = None
    """Number of devices that the points are split over; the curve is trained on one."""
    precision: Literal["highest", "high", "default"] = "highest"
    """Precision of matrix products: float32; high and default take fewer bits on a TPU or GPU, which is faster. On a
    CPU all three are float32."""
    cap: Annotated[float | None, _optional("FLOAT", "no cap")] = None
    """In the picture of the plane, draw larger values as this one; the saved values stay as they are."""
    log: bool = False
    """Logarithmic scale in the pictures; by default it is chosen if positive values span a factor over 1000."""
    no_log: bool = False
    """Linear scale in the pictures, however far the values span."""
    overwrite: bool = False
    """Start anew even if the folder has a result, finished or interrupted."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class CompileOptions:
    """Say what your network costs on a slice of TPUs, without one: memory per chip, operations, estimated time.

    A landscape step, a Hessian product and the steps of Lanczos are compiled by the compiler for TPUs, libtpu (pip
    install "jax[tpu]"); each takes a second to some minutes. Nothing is computed. --problem is as for the verb
    landscape.
    """

    problem: str
    """The factory, MODULE:FUNCTION or FILE.py:FUNCTION, a function that returns lla_jax.Problem or lla_torch.problem;
    modules are also looked for in the current folder."""
    for_: Annotated[str, tyro.conf.arg(name="for", metavar="SLICE")]
    """The slice: tpu-v5e-N, tpu-v5p-N or tpu-v6e-N for N chips, such as tpu-v5e-8; another name brings the list."""
    dims: Literal[1, 2, 3] = 2
    """Number of axes of the landscape."""
    points: tuple[int, ...] = (41,)
    """Points per axis: one number, or one for each axis."""
    products: int = 1
    """Hessian products of the job."""
    steps: int = 100
    """Lanczos steps of the job."""
    batch_size: Annotated[int | None, _optional("INT", "all at once")] = None
    """Examples per batch."""
    batch_stats: Literal["frozen", "batch"] = "frozen"
    """BatchNorm statistics: as trained, or of each batch."""
    data_shards: Annotated[int | None, _optional("INT", "as the memory needs")] = None
    """Chips of a host over which the examples of the landscape are split; the points are split over the others."""
    precision: Literal["highest", "high", "default"] = "highest"
    """Precision of matrix products: float32 (six products of bfloat16 on a TPU), three, or one."""
    out: Annotated[Path | None, _optional("FILE.json", "print only")] = None
    """Also save all numbers as JSON into this file."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class PlotOptions:
    """Draw a saved result again."""

    file: tyro.conf.Positional[Path]
    """A result saved as .npz: landscape, eigenpairs, spectrum, path or barrier; or a folder, to draw all in it."""
    out: Annotated[Path | None, _optional("PATH", "that of the file")] = None
    """Folder for the pictures."""
    value: str = "loss"
    """Name of the values to draw, such as accuracy or test_loss."""
    cap: Annotated[float | None, _optional("FLOAT", "no cap")] = None
    """Draw larger values as this one (planes and volumes)."""
    log: bool = False
    """Logarithmic scale; by default it is chosen if positive values span a factor over 1000 and there is no --cap."""
    no_log: bool = False
    """Linear scale, however far the values span."""
    format: Literal["png", "pdf", "svg"] = "png"
    """Kind of picture file."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class MergeOptions:
    """Merge what several processes computed: the result and its pictures, from the chunks in a folder.

    For a sweep made with lla_jax.sweep, a landscape.npz is written into each of its folders, and table.csv.
    """

    folder: tyro.conf.Positional[Path]
    """The --out of lla-jax landscape, or the store= of lla_jax.evaluate and sweep."""
    partial: bool = False
    """Merge the chunks there are, even if some are missing, into landscape.partial.npz."""
    out: Annotated[Path | None, _optional("PATH", "the folder of the store")] = None
    """Write the result and its pictures here, as for a store that cannot be written to."""
    cap: Annotated[float | None, _optional("FLOAT", "no cap")] = None
    """Draw larger values as this one (planes and volumes)."""
    log: bool = False
    """Logarithmic scale; by default it is chosen if positive values span a factor over 1000 and there is no --cap."""
    no_log: bool = False
    """Linear scale, however far the values span."""
    debug: bool = False
    """Show the whole traceback of an error."""


@dataclass(frozen=True)
class StatusOptions:
    """Say how far the computation in a folder is: chunks, writers, damage, time left."""

    folder: tyro.conf.Positional[Path]
    """The --out of lla-jax landscape, or the store= of lla_jax.evaluate and sweep."""
    debug: bool = False
    """Show the whole traceback of an error."""


Options = (
    Annotated[DemoOptions, tyro.conf.subcommand("demo")]
    | Annotated[LandscapeOptions, tyro.conf.subcommand("landscape")]
    | Annotated[HessianOptions, tyro.conf.subcommand("hessian")]
    | Annotated[PathOptions, tyro.conf.subcommand("path")]
    | Annotated[ConnectOptions, tyro.conf.subcommand("connect")]
    | Annotated[CompileOptions, tyro.conf.subcommand("compile")]
    | Annotated[MergeOptions, tyro.conf.subcommand("merge")]
    | Annotated[StatusOptions, tyro.conf.subcommand("status")]
    | Annotated[PlotOptions, tyro.conf.subcommand("plot")]
)
