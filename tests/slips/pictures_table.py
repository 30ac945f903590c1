"""Slips in pictures: names that are not there, scales that cannot be drawn, axes, files."""

from __future__ import annotations

import io
import pathlib

import numpy as np
from matplotlib.figure import Figure

import lla_jax as lla
from lla_jax import plotting
from tests.slips.drawn import LINE, PLANE, VOLUME, A, B, C, axes, holes, landscape, pairs, spectrum
from tests.slips.slip import table

SLIPS, slip = table()


# --- values


@slip("value", "'acc' given", "'loss', 'accuracy'")
def a_surface_of_a_value_that_is_not_there() -> None:
    plotting.surface(PLANE, "acc")


@slip("value", "'loss', 'accuracy'")
def a_surface_of_two_values() -> None:
    plotting.surface(PLANE, ["loss", "accuracy"])


@slip("value", "panels or contour with {name: landscape}")
def a_contour_of_two_landscapes() -> None:
    plotting.contour(PLANE, PLANE)


@slip("value", "None given", "'loss', 'accuracy'")
def a_line_of_no_value() -> None:
    plotting.line(LINE, None)


@slip("value", "3 given", "'loss', 'accuracy'")
def a_line_of_a_number() -> None:
    plotting.line(LINE, 3)


@slip("value", "[] given")
def a_line_of_an_empty_list() -> None:
    plotting.line(LINE, [])


@slip("accuracy", "'acc' given", "None, which leaves it out")
def train_and_test_without_such_a_metric() -> None:
    plotting.train_test(LINE, accuracy="acc")


@slip("other", "test_loss", "extra_data=")
def train_and_test_without_test_data() -> None:
    plotting.train_test(LINE)


@slip("value", "no finite cell among 20")
def a_surface_without_a_finite_value() -> None:
    plotting.surface(holes())


@slip("value", "no finite cell")
def a_line_without_a_finite_value() -> None:
    plotting.line(landscape(A, loss=np.full(5, np.inf)))


@slip("landscape.values['loss']", "real")
def a_surface_of_complex_values() -> None:
    plotting.surface(landscape(A, B, loss=np.ones((5, 4), complex)))


@slip("landscape.values['loss']", "real numbers")
def a_surface_of_words() -> None:
    plotting.surface(landscape(A, B, loss=np.full((5, 4), "high")))


@slip("landscape.coords[0]", "all different")
def a_surface_over_a_coordinate_twice() -> None:
    plotting.surface(lla.Landscape((np.array([0.0, 0.0, 1.0, 2.0, 3.0]), B), PLANE.values, {}, {}))


@slip("landscape.coords[1]", "finite numbers")
def a_contour_over_a_coordinate_of_nan() -> None:
    plotting.contour(lla.Landscape((A, np.array([0.0, 1.0, np.nan, 2.0])), PLANE.values, {}, {}))


@slip("landscape.recipe", "None given", "a dict")
def a_landscape_without_a_recipe() -> None:
    plotting.line(lla.Landscape((A,), LINE.values, {}, None))


@slip("marks", "[[name, [a, b]], ...]")
def a_recipe_with_other_marks() -> None:
    plotting.contour(lla.Landscape((A, B), PLANE.values, {}, {"directions": {"marks": {"start": (0, 0)}}}))


@slip("values", "(4, 5)", "(5, 4)")
def a_surface_of_transposed_values() -> None:
    plotting.surface(landscape(A, B, loss=np.ones((4, 5))))


@slip("landscape", "(1, 1) points given", "use heatmap")
def a_surface_of_one_point() -> None:
    plotting.surface(landscape(A[:1], B[:1]))


@slip("landscape", "evaluate more points")
def a_volume_of_one_point() -> None:
    plotting.volume(landscape(A[:1], B[:1], C))


@slip("pairs", "none of 1 values is finite")
def a_scree_of_nan() -> None:
    plotting.scree(pairs(np.nan))


# --- scales


@slip("log", "at or below 0", "log=False")
def logarithms_of_negative_losses() -> None:
    plotting.surface(PLANE, log=True)


@slip("log", "at or below 0", "log=False")
def logarithms_of_negative_eigenvalues() -> None:
    plotting.scree(pairs(3.0, -1.0), log=True)


@slip("log", "'yes' given", "True or False")
def a_word_for_log() -> None:
    plotting.contour(PLANE, log="yes")


@slip("log", "10 given", "True or False")
def a_base_for_log() -> None:
    plotting.line(LINE, log=10)


@slip("log", "'y' given", "True or False")
def a_word_for_log_of_eigenvalues() -> None:
    plotting.scree(pairs(3.0), log="y")


@slip("shared", "'colour' given", "True or False")
def a_word_for_shared() -> None:
    plotting.panels({"a": PLANE}, shared="colour")


@slip("cap", "nan given", "None")
def a_cap_of_nan() -> None:
    plotting.surface(PLANE, cap=np.nan)


@slip("cap", "True given", "finite number")
def a_cap_of_true() -> None:
    plotting.surface(PLANE, cap=True)


@slip("cap", "'5' given", "finite number")
def a_cap_as_text() -> None:
    plotting.surface(PLANE, cap="5")


@slip("cap", "-3 given", "above the smallest value")
def a_cap_below_all_values() -> None:
    plotting.contour(PLANE, cap=-3)


@slip("levels", "[3, 2, 1] given", "increasing")
def levels_that_fall() -> None:
    plotting.contour(PLANE, levels=[3, 2, 1])


@slip("levels", "'many' given", "such as 20")
def levels_as_text() -> None:
    plotting.contour(PLANE, levels="many")


@slip("levels", "['low', 'high']", "increasing numbers")
def levels_as_words() -> None:
    plotting.contour(PLANE, levels=["low", "high"])


@slip("levels", "[1, [2]] given", "increasing numbers")
def ragged_levels() -> None:
    plotting.contour(PLANE, levels=[1, [2]])


@slip("levels", "1000000 given", "from 1 to 1000")
def a_million_levels() -> None:
    plotting.contour(PLANE, levels=10**6)


@slip("levels", "2.5 given", "integer")
def a_fraction_of_levels() -> None:
    plotting.contour(PLANE, levels=2.5)


@slip("levels", "[nan, 1.0]", "increasing")
def levels_of_nan() -> None:
    plotting.contour(PLANE, levels=[np.nan, 1.0])


@slip("slices", "0 given", "integer of at least 1")
def no_slices() -> None:
    plotting.volume(VOLUME, slices=0)


@slip("kind", "'3d' given", "'surface', 'contour', 'heatmap'")
def panels_of_an_unknown_kind() -> None:
    plotting.panels({"a": PLANE}, kind="3d")


@slip("scale", "'log' given", "'linear', 'symlog'")
def a_logarithmic_density() -> None:
    plotting.spectral_density(spectrum(), scale="log")


@slip("width", "0 given", "such as 0.01")
def a_density_of_no_width() -> None:
    plotting.spectral_density(spectrum(), width=0)


@slip("width", "5 given", "relative to the range")
def a_width_in_units_of_eigenvalues() -> None:
    plotting.spectral_density(spectrum(), width=5)


@slip("width", "'1%' given", "such as 0.01")
def a_width_as_text() -> None:
    plotting.spectral_density(spectrum(), width="1%")


@slip("threshold", 'scale="symlog"')
def a_threshold_of_a_linear_scale() -> None:
    plotting.spectral_density(spectrum(), threshold=0.1)


@slip("cap", "it is for maps", "leave it out")
def a_cap_of_a_convexity_line() -> None:
    plotting.convexity(landscape(A, convexity=np.ones(5)), cap=1)


# --- axes


@slip("ax", "whole figure", 'fig.add_subplot(projection="3d")')
def a_figure_as_axes() -> None:
    plotting.surface(PLANE, ax=Figure())


@slip("ax", "plain 2-D axes", "one entry of the array")
def an_array_of_axes() -> None:
    plotting.contour(PLANE, ax=Figure().subplots(1, 2))


@slip("ax", "left", "plain 2-D axes")
def a_word_for_axes() -> None:
    plotting.line(LINE, ax="left")


@slip("ax", "3-D axes", 'projection="3d"')
def a_surface_in_flat_axes() -> None:
    plotting.surface(PLANE, ax=axes())


@slip("ax", "plain 2-D axes for a heatmap")
def a_heatmap_in_solid_axes() -> None:
    plotting.heatmap(PLANE, ax=axes(projection="3d"))


@slip("ax", "plain 2-D axes for a curve")
def a_line_in_solid_axes() -> None:
    plotting.line(LINE, ax=axes(projection="3d"))


@slip("ax", "plain 2-D axes for a curve")
def a_density_in_polar_axes() -> None:
    plotting.spectral_density(spectrum(), ax=axes(projection="polar"))


@slip("ax", "removed from their figure")
def axes_that_were_removed() -> None:
    gone = axes()
    gone.remove()
    plotting.scree(pairs(1.0), ax=gone)


@slip("ax", "2 landscapes", "leave ax out")
def axes_for_several_landscapes() -> None:
    plotting.contour({"a": PLANE, "b": PLANE}, ax=axes())


# --- figures


@slip("fname", "plane.xyz", "png", "svg")
def a_file_of_an_unknown_kind() -> None:
    plotting.line(LINE).savefig("plane.xyz")


@slip("format", "'bitmap' given", "png")
def an_unknown_format() -> None:
    plotting.line(LINE).savefig("plane", format="bitmap")


@slip("fname", "nowhere", "folder that exists")
def a_file_in_no_folder() -> None:
    plotting.line(LINE).savefig("nowhere/at/all/plane.png")


@slip("fname", "a folder", "picture.png")
def a_folder_as_a_file() -> None:
    plotting.line(LINE).savefig(str(pathlib.Path(__file__).parent))


@slip("fname", "None given", "picture.png")
def no_file() -> None:
    plotting.line(LINE).savefig(None)


@slip("fname", "'' given", "picture.png")
def an_empty_file_name() -> None:
    plotting.line(LINE).savefig("")


@slip("fname", "' ' given", "picture.png")
def a_file_name_of_spaces() -> None:
    plotting.line(LINE).savefig(" ")


@slip("savefig", "dpi=-3", "positive", "dpi=200")
def a_negative_resolution() -> None:
    plotting.line(LINE).savefig(io.BytesIO(), dpi=-3)


@slip("savefig", "dpi='high'", "dpi=200")
def a_resolution_as_text() -> None:
    plotting.line(LINE).savefig(io.BytesIO(), dpi="high")


@slip("fname", "picture.png")
def a_missing_file_name() -> None:
    plotting.line(LINE).savefig()


@slip("cmap", "surface()", "It takes landscape, value, cap, log, title, ax")
def a_colour_map() -> None:
    plotting.surface(PLANE, cmap="jet")


@slip("vmin", "It takes landscape, value, cap, log, title, ax")
def limits_of_colours() -> None:
    plotting.heatmap(PLANE, vmin=2, vmax=1)


@slip("show", "'agg'", 'fig.savefig("picture.png")')
def a_window_without_a_screen() -> None:
    import matplotlib

    matplotlib.use("agg")
    plotting.line(LINE).show()


@slip("'show'", "savefig", "last value of a cell")
def plotting_show() -> None:
    plotting.show()


@slip("'savefig'", 'fig.savefig("plane.png")')
def plotting_savefig() -> None:
    plotting.savefig("plane.png")


@slip("'surface3d'", "surface", "spectral_density")
def an_unknown_plotting_function() -> None:
    plotting.surface3d(PLANE)
