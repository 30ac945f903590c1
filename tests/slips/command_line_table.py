"""Slips on the command line: commands, options, problems, folders and files."""

from __future__ import annotations

import json
from typing import Any

from lla_jax.landscape.store import manifest as _manifest
from tests.slips.slip import command, table

SLIPS, slip = table()

MODULE = """
import numpy as np
import lla_jax as lla

NUMBER = 3

def squares(params, batch):
    return ((batch[0] @ params["w"] - batch[1]) ** 2).mean()

def make():
    x = np.ones((4, 3), np.float32)
    return lla.Problem(squares, {"w": np.ones(3, np.float32)}, (x, x[:, 0]))

def needs(size): return make()
def entries(): return squares, {}, ()
def named(): return {"loss": squares}
def nothing(): make()
async def awaited(): return make()
def yielded(): yield make()
def kind(): return lla.Problem
def unmade(): return make
def leaves(): raise SystemExit(0)
def swapped():
    problem = make()
    return lla.Problem(problem.params, problem.loss, problem.data)

class Net:
    pass
"""
LINEN = "import flax.linen as nn\ndef make(): return nn.Dense(3)\n"
NNX = "from flax import nnx\ndef make(): return nnx.Linear(3, 1, rngs=nnx.Rngs(0))\n"


def run(*words: Any, **files: str) -> None:
    """A command in a folder that has the module; further files are named with __ in place of a dot."""
    command(*words, files={"net.py": MODULE} | {name.replace("__", "."): text for name, text in files.items()})


def row(*words: str, says: tuple[str, ...], name: str, **files: str) -> None:
    """Add a row to the table: a command line, and what must stand in its message."""

    def call() -> None:
        run(*words, **files)

    call.__name__ = name
    slip(*says)(call)


HELP = "(lla-jax landscape --help lists the options)"

# --- words before the options
row("landscap", "--problem", "net:make", says=("no command 'landscap'", "did you mean landscape?"), name="command")
row("Plot", "run", says=("no command 'Plot'", "did you mean plot?"), name="command_in_capitals")
row(
    "report",
    "run",
    says=("no command 'report'", "demo, landscape, hessian, path, connect, compile, merge, status, plot"),
    name="no_command",
)
row(
    *("--points", "5", "landscape", "--problem", "net:make"),
    says=("--points given before the command", "lla-jax landscape --points 5 --problem net:make"),
    name="options_before_the_command",
)
row("--problem", "net:make", says=("lla-jax landscape --problem net:make",), name="no_command_but_a_problem")
row("net:make", says=("lla-jax landscape --problem net:make",), name="a_problem_alone")
row("run/landscape.npz", says=("lla-jax plot run/landscape.npz",), name="a_file_alone")
row("-v", says=("there is no option -v", "lla-jax --help"), name="an_option_alone")

# --- options
ON = ("landscape", "--problem", "net:make")
row("landscape", says=("--problem: not given", "--problem MODULE:FUNCTION", HELP), name="no_problem")
row("landscape", "net:make", says=("write lla-jax landscape --problem net:make",), name="a_problem_without_its_option")
row(*ON, "--poins", "5", says=("--poins", "did you mean --points?"), name="an_unknown_option")
row(*ON, "-points", "5", says=("options have two dashes; write --points",), name="one_dash")
row(*ON, "--matrix", "ggn", says=("an option of lla-jax hessian, not of landscape",), name="an_option_of_another")
row(*ON, "--no-overwrite", says=("leave --overwrite out instead",), name="the_negative_of_a_flag")
row(*ON, "--log", "true", says=("'true' is left over after --log", "takes no value"), name="a_value_for_a_flag")
row(*ON, "--log=true", says=("--log: 'true' given", "write --log alone"), name="an_equals_for_a_flag")
row(*ON, "--points=abc", says=("--points: 'abc' given", "an integer, such as 41"), name="points_that_are_text")
row(*ON, "--points", "5.5", says=("--points: '5.5' given", "an integer"), name="points_with_a_fraction")
row(*ON, "--points", "3x3", says=("--points: '3x3' given", "separated by spaces"), name="points_with_a_cross")
row(*ON, "--points", says=("--points: no value given", "leave --points out"), name="points_without_a_number")
row(*ON, "--points", "0", says=("--points: 0 given", "at least 1"), name="no_points")
row(*ON, "--points", "100000", says=("--points: 10,000,000,000 in all", "such as 101"), name="very_many_points")
row(*ON, "--dims", "4", says=("--dims: '4' given", "one of 1, 2, 3"), name="four_axes")
row(*ON, "--axes", "hesian", says=("--axes: 'hesian' given", "did you mean hessian?"), name="axes_misspelt")
row(*ON, "--axes", "pca", says=("--axes: 'pca' given", "one of random, hessian"), name="unknown_axes")
row(*ON, "--range", "-1", "1", "-1", says=("--range: -1 1 -1 given", "pairs, LOW HIGH"), name="half_a_pair")
row(*ON, "--range", "-1,1", says=("--range: '-1,1' given", "separated by spaces"), name="a_range_with_a_comma")
row(*ON, "--range", says=("--range: no value given", "leave --range out"), name="a_range_without_numbers")
row(
    *ON,
    "--range",
    "1",
    "-1",
    "-1",
    "1",
    says=("--range: 1 -1 given", "the lower one first"),
    name="a_range_upside_down",
)
row(*ON, "--range", "nan", "1", "0", "1", says=("--range: nan 1 given", "finite"), name="a_range_of_nan")
row(*ON, "--extent", "inf", says=("--extent: inf given", "a positive number"), name="an_infinite_extent")
row(*ON, "--batch-size", "all", says=("--batch-size: 'all' given", "an integer"), name="a_batch_of_all")
row(*ON, "--seed", "1" * 30, says=("--seed: 1111", "at most 63 bits"), name="a_seed_of_many_digits")
row(*ON, "--devices", "gpu", says=("--devices: 'gpu' given", "an integer"), name="a_device_by_name")
row(*ON, "--select", says=("--select: no value given", "leave --select out"), name="a_selection_of_nothing")
row(*ON, "--shard", "3", says=("--shard: 3 given", "I/N", "3/16"), name="a_shard_without_a_number")
row(*ON, "--shard", "1", "3", says=("'3' is left over after --shard", "I/N, such as 3/16"), name="a_shard_of_two_words")
row(*ON, "--shard", "0/3", says=("--shard: 0/3 given", "I from 1 to N"), name="a_shard_from_zero")
row(*ON, "--cap", "nan", says=("--cap: nan given", "a finite number"), name="a_cap_of_nan")
row(*ON, "--log", "--no-log", says=("--log: given with --no-log", "give one of them"), name="both_scales")
row(*ON, "--out", says=("--out: no value given", "leave --out out"), name="a_folder_without_a_name")
row(*ON, "--out", "", says=("--out: '' given", "a path"), name="a_folder_of_an_empty_name")
row(
    *ON,
    "--out",
    "taken",
    says=("--out: taken given", "it is a file", "pass another"),
    name="a_file_as_folder",
    taken="",
)
row("hessian", "--problem", "net:make", "--top", "0", says=("--top: 0 given", "such as 5"), name="no_eigenvalues")
row("hessian", "--problem", "net:make", "--tol", "2", says=("--tol: 2.0 given", "between 0 and 1"), name="a_tolerance")
row("demo", "extra", says=("'extra' is left over",), name="a_word_too_many")
row("demo", "--points", "2", says=("--points: 2 given", "at least 3"), name="a_demo_of_two_points")

# --- the problem
PROBLEM = ("landscape", "--problem")
row(
    *PROBLEM,
    "net.py",
    says=("MODULE:FUNCTION", "functions make, entries", "write net.py:make"),
    name="a_file_alone_as_problem",
)
row(*PROBLEM, "net.make", says=("MODULE:FUNCTION", "did you mean net:make?"), name="a_dot_for_a_colon")
row(*PROBLEM, "a.ipynb:make", says=("a.ipynb is a notebook", "save it as a script"), name="a_notebook", a__ipynb="{}")
row(*PROBLEM, "nets:make", says=("no module 'nets'", "check the name"), name="a_module_that_is_absent")
row(*PROBLEM, "nets.py:make", says=("no file nets.py", "did you mean net.py?"), name="a_file_misspelt")
row(*PROBLEM, "./net:make", says=("did you mean the file net.py?",), name="a_file_without_its_ending")
row(*PROBLEM, ".net:make", says=("names no module", "a module by its full name"), name="a_relative_module")
row(
    *(*PROBLEM, "rel.py:make"),
    says=("attempted relative import", "name the module from the folder above"),
    name="a_relative_import",
    rel__py="from .net import make\n",
)
row(*PROBLEM, "bad.py:make", says=("importing it failed: SyntaxError",), name="a_syntax_error", bad__py="def make(:\n")
row(*PROBLEM, "net:mak", says=("no function 'mak'", "did you mean 'make'?"), name="a_function_misspelt")
row(*PROBLEM, "net:NUMBER", says=("NUMBER in net is int, not a function",), name="a_number_as_function")
row(*PROBLEM, "net:needs", says=("needs size", "give them defaults"), name="a_factory_with_arguments")
row(*PROBLEM, "net:Net", says=("returned Net", "must return lla_jax.Problem"), name="a_class_as_factory")
row(*PROBLEM, "net:entries", says=("returned a tuple of 3 things", "lla_jax.Problem("), name="a_factory_of_a_tuple")
row(*PROBLEM, "net:named", says=("returned a dict", "lla_jax.Problem(**"), name="a_factory_of_a_dict")
row(*PROBLEM, "net:nothing", says=("returned None", "return statement"), name="a_factory_without_return")
row(*PROBLEM, "net:awaited", says=("a coroutine", "without async"), name="a_factory_that_is_awaited")
row(*PROBLEM, "net:yielded", says=("a generator", "return, not yield"), name="a_factory_that_yields")
row(*PROBLEM, "net:kind", says=("the class Problem itself", "must call it"), name="a_factory_of_a_class")
row(*PROBLEM, "net:unmade", says=("the function make itself", "must call it"), name="a_factory_of_a_function")
row(*PROBLEM, "net:leaves", says=("SystemExit: 0", "instead of leaving the process"), name="a_factory_that_leaves")
row(*PROBLEM, "l.py:make", says=("Flax linen", "lla_jax.from_linen("), name="a_linen_module", l__py=LINEN)
row(*PROBLEM, "x.py:make", says=("Flax nnx", "lla_jax.from_nnx("), name="an_nnx_module", x__py=NNX)
row("hessian", "--problem", "net", says=("--problem: 'net' given", "MODULE:FUNCTION"), name="a_module_alone")

# --- folders and files
MADE = {"axes": "gradient", "problem": "net:make"}
STORE = json.dumps({"format": _manifest.FORMAT, "version": 1})
row("plot", says=("FILE: not given", "lla-jax plot run/landscape.npz"), name="a_plot_of_nothing")
row("plot", "", says=("FILE: '' given",), name="a_plot_of_an_empty_name")
row("plot", "absent.npz", says=("absent.npz does not exist",), name="a_plot_of_an_absent_file")
row("plot", ".", says=("holds no result (.npz) that has a picture", "lla-jax landscape"), name="a_plot_of_a_folder")
row("plot", ".", says=("lla-jax merge",), name="a_plot_of_a_store", manifest__json=STORE)
row("plot", "net.py", says=("net.py is not a readable lla_jax result", "it is text"), name="a_plot_of_a_script")
row("plot", "empty.npz", says=("empty.npz", "it is empty"), name="a_plot_of_an_empty_file", empty__npz="")
row("plot", "net.py", "--format", "gif", says=("--format: 'gif' given", "png, pdf, svg"), name="an_unknown_format")
row("plot", "a.npz", "b.npz", says=("'b.npz' is left over",), name="a_plot_of_two_files")
row("status", says=("FOLDER: not given", "lla-jax status run"), name="a_status_of_nothing")
row("status", ".", says=("holds no store", "--out"), name="a_status_of_an_empty_folder")
row("status", "absent", says=("absent does not exist",), name="a_status_of_an_absent_folder")
row("status", "net.py", says=("net.py is no folder",), name="a_status_of_a_file")
row("merge", "absent", says=("absent does not exist",), name="a_merge_of_an_absent_folder")
row("merge", "net.py", says=("net.py is no folder",), name="a_merge_of_a_file")
row(
    "merge",
    ".",
    says=("manifest.json was changed or damaged",),
    name="a_merge_of_a_damaged_store",
    manifest__json=STORE,
)
row(
    *(*ON, "--out", "."),
    says=("other options: axes gradient -> random", "choose another --out, or --overwrite it"),
    name="another_landscape_into_a_folder",
    manifest__json=STORE,
    command__json=json.dumps(MADE),
)
row(
    *(*ON, "--out", ".", "--overwrite"),
    says=("manifest.json is of another program", "pass another folder"),
    name="overwriting_the_folder_of_another_program",
    manifest__json="{}",
)
