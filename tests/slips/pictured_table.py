"""Slips in pictures: the wrong object."""

from __future__ import annotations

import pathlib

import numpy as np
from matplotlib.figure import Figure

import lla_jax as lla
from lla_jax import plotting
from tests.slips.drawn import LINE, PLANE, VOLUME, A, B, C, Operator, landscape, pairs, spectrum
from tests.slips.slip import table

SLIPS, slip = table()


# --- the wrong object


@slip("landscape", "Spectrum", "spectral_density draws it")
def a_surface_of_a_spectrum() -> None:
    plotting.surface(spectrum())


@slip("landscape", "scree")
def a_contour_of_eigenpairs() -> None:
    plotting.contour(pairs(1.0))


@slip("landscape", "ndarray of shape (5, 4)", 'lla.Landscape((a, b), {"loss": values}, {}, {})')
def a_heatmap_of_an_array() -> None:
    plotting.heatmap(PLANE.values["loss"])


@slip("landscape", "lla.load('runs/plane.npz')")
def a_surface_of_a_path_as_text() -> None:
    plotting.surface("runs/plane.npz")


@slip("landscape", "lla.load(")
def a_surface_of_a_path() -> None:
    plotting.surface(pathlib.Path("runs/plane.npz"))


@slip("landscape", "None given", "a Landscape, as lla.evaluate returns it")
def a_line_of_nothing() -> None:
    plotting.line(None)


@slip("landscape", "None given", "a Landscape, as lla.evaluate returns it")
def a_line_of_nothing_without_a_value() -> None:
    plotting.line(None, [])


@slip("landscape", "panels or contour with {name: landscape}")
def a_contour_of_a_list() -> None:
    plotting.contour([PLANE, PLANE])


@slip("landscape", "panels or contour with {name: landscape}")
def a_surface_of_a_dict() -> None:
    plotting.surface({"one": PLANE})


@slip("landscape", "directions are axes", "lla.evaluate(")
def a_surface_of_directions() -> None:
    plotting.surface(lla.directions.given({"w": np.ones((1, 2), "f4")}))


@slip("landscape", "first compute it: lla.evaluate(")
def a_surface_of_a_function() -> None:
    plotting.surface(lambda params, batch: 0.0)


@slip("landscape", "print it")
def a_line_of_an_estimate() -> None:
    plotting.line(lla.Estimate(1.0, 0.1, 4))


@slip("landscape", "a figure already", "fig.savefig")
def a_surface_of_a_figure() -> None:
    plotting.surface(Figure())


@slip("landscape", 'table[0, "filter", 0]')
def a_surface_of_a_sweep() -> None:
    from lla_jax.landscape.sweeps import Table

    plotting.surface(Table({(0, "filter", 0): PLANE}))


@slip("landscape", "line draws 1 axis", "use surface, contour or heatmap")
def a_line_of_a_plane() -> None:
    plotting.line(PLANE)


@slip("landscape", "contour draws 2 axes", "use line or train_test")
def a_contour_of_a_line() -> None:
    plotting.contour(LINE)


@slip("landscape", "surface draws 2 axes", "use volume")
def a_surface_of_a_volume() -> None:
    plotting.surface(VOLUME)


@slip("landscape", "volume draws 3 axes", "use surface, contour or heatmap")
def a_volume_of_a_plane() -> None:
    plotting.volume(PLANE)


@slip("landscape", "this has 4", "fewer axes")
def a_volume_of_four_axes() -> None:
    plotting.volume(landscape(A, B, C, C))


@slip("landscape", "train_test draws 1 axis")
def train_and_test_of_a_plane() -> None:
    plotting.train_test(landscape(A, B, test_loss=np.ones((5, 4)), test_accuracy=np.ones((5, 4))))


@slip("landscape", "spectral_density draws it")
def train_and_test_of_a_spectrum() -> None:
    plotting.train_test(spectrum())


@slip("landscapes", "Landscape", "{name: landscape}")
def panels_of_one_landscape() -> None:
    plotting.panels(PLANE)


@slip("landscapes", "panels or contour with {name: landscape}")
def panels_of_a_list() -> None:
    plotting.panels([PLANE, PLANE])


@slip("landscapes", "{} given", "at least")
def panels_of_nothing() -> None:
    plotting.panels({})


@slip("landscapes['b']", "contour draws 2 axes", "this has 1")
def panels_of_a_plane_and_a_line() -> None:
    plotting.panels({"a": PLANE, "b": LINE}, kind="contour")


@slip("landscapes['b']", "spectral_density draws it")
def panels_with_a_spectrum() -> None:
    plotting.panels({"a": PLANE, "b": spectrum()})


@slip("spec", "scree")
def a_density_of_eigenpairs() -> None:
    plotting.spectral_density(pairs(1.0))


@slip("spec", "spectral_density({name: spectrum, ...})")
def a_density_of_a_list_of_spectra() -> None:
    plotting.spectral_density([spectrum(), spectrum()])


@slip("spec", "pass the spectrum itself")
def a_density_of_a_density() -> None:
    plotting.spectral_density(lla.density(spectrum()))


@slip("spec", "lla.spectrum(H, key)")
def a_density_of_an_operator() -> None:
    plotting.spectral_density(Operator())


@slip("spec", "surface, contour or heatmap")
def a_density_of_a_landscape() -> None:
    plotting.spectral_density(PLANE)


@slip("spec", "finite nodes")
def a_density_of_nan() -> None:
    plotting.spectral_density(spectrum(np.nan))


@slip("nodes", "(1, 3)", "(1, 2)")
def a_density_with_weights_of_another_shape() -> None:
    plotting.spectral_density(lla.Spectrum(np.ones((1, 3)), np.ones((1, 2)), {}))


@slip("pairs", "spectral_density draws it")
def a_scree_of_a_spectrum() -> None:
    plotting.scree(spectrum())


@slip("pairs", "Eigenpairs, as lla.eigenpairs returns them")
def a_scree_of_an_array() -> None:
    plotting.scree(np.array([3.0, 1.0]))


@slip("pairs", "Eigenpairs, as lla.eigenpairs returns them")
def ticks_of_a_density_from_an_array() -> None:
    plotting.spectral_density(spectrum(), pairs=np.array([3.0, 1.0]))


@slip("pairs", "{name: Eigenpairs}")
def ticks_of_a_density_for_several_spectra() -> None:
    plotting.spectral_density({"before": spectrum(), "after": spectrum()}, pairs=pairs(1.0))


@slip("rows", "lla.per_layer", "scree")
def layers_of_eigenpairs() -> None:
    plotting.layers(pairs(1.0))


@slip("rows", "None given", "lla.per_layer")
def layers_of_nothing() -> None:
    plotting.layers(None)


@slip("rows", "None given", "lla.per_layer")
def a_table_of_no_layers() -> None:
    lla.layers.table(None)


@slip("landscape", "'convexity'", "lla.convexity")
def convexity_of_a_plane_of_losses() -> None:
    plotting.convexity(PLANE)


@slip("landscape", "lla.convexity", "spectral_density draws it")
def convexity_of_a_spectrum() -> None:
    plotting.convexity(spectrum())
