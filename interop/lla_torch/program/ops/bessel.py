"""Bessel and Airy functions, with torch's approximations; torch takes them for constants, so they have no derivative.

The approximations are those of Moshier's Cephes library. torch leaves out the leading term of some denominators, so
that its J0, J1, Y0, Y1 differ from the functions by up to 1e-6, and Ai below -2.09 by 3e-6. A converted network has
torch's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy import special

from lla_torch.program.operators import lowering
from lla_torch.program.ops.pointwise import of_floats
from lla_torch.program.ops.special import polynomial, ratio

Array = jax.Array

# coefficients, the highest power first
_AI_DECAY = (
    (
        0.346538101525629,
        12.007595273964581,
        76.27960536152345,
        168.08922493463058,
        159.75639135016442,
        70.53609068404442,
        14.026469116338967,
        1.0,
    ),
    (
        0.5675945326387702,
        14.75625625848472,
        84.51389701414746,
        177.31808814540045,
        164.2346928715297,
        71.47784008255756,
        14.095913560783403,
        1.0,
    ),
)
_AI_SINE = (
    (
        -0.1316963234183318,
        -0.6264565444319123,
        -0.6931580360369335,
        -0.2797799815451191,
        -0.04919001326095003,
        -0.004062659235948854,
        -0.0001592764962392621,
        -2.776491081552329e-06,
        -1.6778769848911465e-08,
    ),
    (
        13.356042070655324,
        32.682503279522464,
        26.736704094149957,
        9.187074029072596,
        1.4752914677166642,
        0.11568717379518804,
        0.004402916416152112,
        7.547203482874142e-05,
        4.5185009297058035e-07,
    ),
)
_AI_COSINE = (
    (
        0.01973399320916857,
        0.39110302961568827,
        1.0657989759959559,
        0.9391692298166502,
        0.35146565610554764,
        0.06338889196289255,
        0.005858041130483885,
        0.000282851600836737,
        6.98793669997261e-06,
        8.117892395543892e-08,
        3.415517847659236e-10,
    ),
    (
        9.30892908077442,
        19.835292871831214,
        15.564662893286462,
        5.476860694229755,
        0.9542936116189619,
        0.08645808263523921,
        0.004126565238242226,
        0.00010125908511650914,
        1.1716673321441352e-06,
        4.9183457006293e-09,
    ),
)
_P0 = (
    (
        0.0007969367292973471,
        0.08283523921074408,
        1.239533716464143,
        5.447250030587687,
        8.74716500199817,
        5.303240382353949,
        1.0,
    ),
    (
        0.0009244088105588637,
        0.08562884743544745,
        1.2535274390105895,
        5.470977403304171,
        8.761908832370695,
        5.306052882353947,
        1.0,
    ),
)
_Q0 = (
    (
        -0.011366383889846916,
        -1.2825271867050931,
        -19.553954425773597,
        -93.20601521237683,
        -177.68116798048806,
        -147.07750515495118,
        -51.41053267665993,
        -6.050143506007285,
    ),
    (
        64.3178256118178,
        856.4300259769806,
        3882.4018360540163,
        7240.467741956525,
        5930.727011873169,
        2062.0933166032783,
        242.0057402402914,
    ),
)
_J0 = (
    (
        -4794432209.782018,
        1956174919465.5657,
        -249248344360967.72,
        9708622510473064.0,
    ),
    (
        499.563147152651,
        173785.4016763747,
        48440965.83399621,
        11185553704.535683,
        2112775201154.892,
        310518229857422.56,
        3.1812195594320496e16,
        1.7108629408104315e18,
    ),
)
_Y0 = (
    (
        15592.436785523574,
        -14663929.59039716,
        5435264770.518765,
        -982136065717.9115,
        87590639439536.7,
        -3466283033847297.0,
        4.4273326857256984e16,
        -1.8495080043698668e16,
    ),
    (
        1041.2835366425984,
        626107.330137135,
        268919633.39381415,
        86400248710.3935,
        20297961275010.555,
        3171577528429750.5,
        2.5059625617265306e17,
    ),
)
_K0_NEAR = (
    1.374465435613523e-16,
    4.25981614279661e-14,
    1.0349695257633842e-11,
    1.904516377220209e-09,
    2.5347910790261494e-07,
    2.286212103119452e-05,
    0.001264615411446926,
    0.0359799365153615,
    0.3442898999246285,
    -0.5353273932339028,
)
_K0_FAR = (
    5.300433772686263e-18,
    -1.6475804301524212e-17,
    5.2103915050390274e-17,
    -1.678231096805412e-16,
    5.512055978524319e-16,
    -1.848593377343779e-15,
    6.3400764774050706e-15,
    -2.2275133269916698e-14,
    8.032890775363575e-14,
    -2.9800969231727303e-13,
    1.140340588208475e-12,
    -4.514597883373944e-12,
    1.8559491149547177e-11,
    -7.957489244477107e-11,
    3.577397281400301e-10,
    -1.69753450938906e-09,
    8.574034017414225e-09,
    -4.660489897687948e-08,
    2.766813639445015e-07,
    -1.8317555227191195e-06,
    1.39498137188765e-05,
    -0.00012849549581627802,
    0.0015698838857300533,
    -0.0314481013119645,
    2.4403030820659555,
)
_P1 = (
    (
        0.0007621256162081731,
        0.07313970569409176,
        1.1271960812968493,
        5.112079511468076,
        8.424045901417724,
        5.214515986823615,
        1.0,
    ),
    (
        0.0005713231280725487,
        0.06884559087544954,
        1.105142326340617,
        5.073863861286015,
        8.399855543276042,
        5.209828486823619,
        1.0,
    ),
)
_Q1 = (
    (
        0.05108625947501766,
        4.982138729512334,
        75.82382841325453,
        366.7796093601508,
        710.8563049989261,
        597.4896124006136,
        211.68875710057213,
        25.207020585802372,
    ),
    (
        74.23732770356752,
        1056.4488603826283,
        4986.410583376536,
        9562.318924047562,
        7997.041604473507,
        2826.1927851763908,
        336.0936078106983,
    ),
)
_J1 = (
    (
        -899971225.7055594,
        452228297998.19403,
        -72749424522181.83,
        3682957328638529.0,
    ),
    (
        620.8364781180543,
        256987.25675774884,
        83514679.14319493,
        22151159547.97925,
        4749141220799.914,
        784369607876235.9,
        8.952223361846274e16,
        5.322786203326801e18,
    ),
)
_Y1 = (
    (
        1263204747.9017804,
        -647355876379.1603,
        114509511541823.73,
        -8127702555013251.0,
        2.024394757135949e17,
        -7.788771962659501e17,
    ),
    (
        594.3015923461282,
        235564.09294306856,
        73481194.44597217,
        18760131610.870617,
        3882312774962.3857,
        620557727146953.8,
        6.871410873553005e16,
        3.9727060811656064e18,
    ),
)
_K1_NEAR = (
    -7.023863479386288e-18,
    -2.427449850519366e-15,
    -6.666901694199329e-13,
    -1.4114883926335278e-10,
    -2.213387630734726e-08,
    -2.4334061415659684e-06,
    -0.0001730288957513052,
    -0.006975723859639864,
    -0.12261118082265715,
    -0.3531559607765449,
    1.5253002273389478,
)
_K1_FAR = (
    -5.756744483665017e-18,
    1.7940508731475592e-17,
    -5.689462558442859e-17,
    1.838093544366639e-16,
    -6.057047248373319e-16,
    2.038703165624334e-15,
    -7.019837090418314e-15,
    2.4771544244813043e-14,
    -8.976705182324994e-14,
    3.3484196660784293e-13,
    -1.2891739609510289e-12,
    5.13963967348173e-12,
    -2.1299678384275683e-11,
    9.218315187605006e-11,
    -4.1903547593418965e-10,
    2.015049755197033e-09,
    -1.0345762465678097e-08,
    5.7410841254500495e-08,
    -3.5019606030878126e-07,
    2.406484947837217e-06,
    -1.936197974166083e-05,
    0.00019521551847135162,
    -0.002857816859622779,
    0.10392373657681724,
    2.7206261904844427,
)


def _constant(*names: str) -> Callable[[Callable[[Array], Array]], Callable[[Array], Array]]:
    """A decorator that registers a function of floats whose derivative is 0, as it is in torch."""

    def register(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
        of_float = of_floats(lambda x: function(jax.lax.stop_gradient(x)))
        lowering(*(f"aten.special_{name}" for name in names), layout="pointwise")(of_float)
        return function

    return register


def _chebyshev(z: Array, coefficients: tuple[float, ...]) -> Array:
    """A series of Chebyshev polynomials by Clenshaw's recurrence in z = 2 t, highest degree first."""
    before, last = jnp.zeros_like(z), jnp.zeros_like(z)
    value = jnp.full_like(z, coefficients[0])
    for c in coefficients[1:]:
        before, last = last, value
        value = z * last - before + c
    return 0.5 * (value - before)


def _wave(x: Array, order: int, second: bool) -> Array:
    """J or (``second``) Y of an order above 5, from its amplitudes of cosine and sine."""
    cosine, sine = (_P0, _Q0) if order == 0 else (_P1, _Q1)
    far = jnp.maximum(x, 5)
    z = 25 / (far * far)
    angle = far - (0.25 + 0.5 * order) * math.pi
    even, odd = ratio(z, cosine), 5 / far * ratio(z, sine)
    s, c = jnp.sin(angle), jnp.cos(angle)
    wave = even * s + odd * c if second else even * c - odd * s
    return wave * math.sqrt(2 / math.pi) / jnp.sqrt(far)


@_constant("bessel_j0")
def bessel_j0(x: Array) -> Array:
    """The Bessel function J0."""
    size = jnp.abs(x)
    z = jnp.square(jnp.minimum(size, 5))
    near = (z - 5.78318596294678452118) * (z - 30.4712623436620863991) * ratio(z, _J0)
    near = jnp.where(size < 1e-5, 1 - z / 4, near)
    return jnp.where(size <= 5, near, _wave(size, 0, False))


@_constant("bessel_j1")
def bessel_j1(x: Array) -> Array:
    """The Bessel function J1."""
    size = jnp.abs(x)
    low = jnp.minimum(size, 5)
    z = low * low
    near = ratio(z, _J1) * low * (z - 14.6819706421238932572) * (z - 49.2184563216946036703)
    return jnp.where(x < 0, -1, 1) * jnp.where(size <= 5, near, _wave(size, 1, False))


def _of_positive(x: Array, value: Array, at_zero: float) -> Array:
    """A function with a pole: NaN below 0, ``at_zero`` at 0."""
    return jnp.where(x < 0, jnp.nan, jnp.where(x == 0, at_zero, value))


@_constant("bessel_y0")
def bessel_y0(x: Array) -> Array:
    """The Bessel function Y0, -inf at 0 and NaN below."""
    low = jnp.where((x > 0) & (x <= 5), x, 1)
    near = ratio(low * low, _Y0) + 2 / math.pi * jnp.log(low) * bessel_j0(low)
    return _of_positive(x, jnp.where(x <= 5, near, _wave(x, 0, True)), -jnp.inf)


@_constant("bessel_y1")
def bessel_y1(x: Array) -> Array:
    """The Bessel function Y1, -inf at 0 and NaN below."""
    low = jnp.where((x > 0) & (x <= 5), x, 1)
    near = low * ratio(low * low, _Y1) + 2 / math.pi * (bessel_j1(low) * jnp.log(low) - 1 / low)
    return _of_positive(x, jnp.where(x <= 5, near, _wave(x, 1, True)), -jnp.inf)


_constant("modified_bessel_i0")(special.i0)
_constant("modified_bessel_i1")(special.i1)


def _scaled_k(x: Array, order: int) -> tuple[Array, Array]:
    """(K of an order for x in (0, 2], K exp x for larger x)."""
    low = jnp.where((x > 0) & (x <= 2), x, 1)
    z = low * low - 2
    if order == 0:
        near = _chebyshev(z, _K0_NEAR) - jnp.log(0.5 * low) * special.i0(low)
    else:
        near = jnp.log(0.5 * low) * special.i1(low) + _chebyshev(z, _K1_NEAR) / low
    high = jnp.maximum(x, 2)
    far = _chebyshev(8 / high - 2, _K0_FAR if order == 0 else _K1_FAR) / jnp.sqrt(high)
    return near, far


def _k(order: int, scaled: bool) -> Callable[[Array], Array]:
    def function(x: Array) -> Array:
        near, far = _scaled_k(x, order)
        value = jnp.where(x <= 2, near * jnp.exp(x), far) if scaled else jnp.where(x <= 2, near, far * jnp.exp(-x))
        return _of_positive(x, value, jnp.inf)

    return function


for _order in (0, 1):
    _constant(f"modified_bessel_k{_order}")(_k(_order, False))
    _constant(f"scaled_modified_bessel_k{_order}")(_k(_order, True))


@_constant("spherical_bessel_j0")
def spherical_bessel_j0(x: Array) -> Array:
    """sin(x) / x, by its series where |x| < 1/2."""
    near = polynomial(x * x, tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in range(6, -1, -1)))
    far = jnp.where(jnp.isinf(x) | (x == 0), 0, jnp.sin(x) / jnp.where(x == 0, 1, x))
    return jnp.where(jnp.abs(x) < 0.5, near, far)


@_constant("airy_ai")
def airy_ai(x: Array) -> Array:
    """The Airy function Ai: by its power series near 0, asymptotic below -2.09 and above 2.09; NaN at +-inf."""
    low = jnp.maximum(-x, 2.09)
    zeta = 2 * low * jnp.sqrt(low) / 3
    z = 1 / zeta
    even, odd = 1 + z * z * ratio(z * z, _AI_SINE), z * ratio(z * z, _AI_COSINE)
    angle = zeta + math.pi / 4
    below = (jnp.sin(angle) * even - jnp.cos(angle) * odd) / (math.sqrt(math.pi) * jnp.sqrt(jnp.sqrt(low)))
    high = jnp.maximum(x, 2.09)
    zeta = 2 * high * jnp.sqrt(high) / 3
    above = ratio(1 / zeta, _AI_DECAY) / (2 * math.sqrt(math.pi) * jnp.sqrt(jnp.sqrt(high)) * jnp.exp(zeta))
    t = jnp.clip(x, -2.09, 2.09)
    first, second, even, odd = jnp.ones_like(t), t, jnp.ones_like(t), t
    for k in range(1, 20):
        first = first * t**3 / ((3 * k - 1) * 3 * k)
        second = second * t**3 / (3 * k * (3 * k + 1))
        even, odd = even + first, odd + second
    near = 0.355028053887817239260 * even - 0.258819403792806798405 * odd
    value = jnp.where(x < -2.09, below, jnp.where(x >= 2.09, above, near))
    return jnp.where(jnp.isinf(x), jnp.nan, jnp.where(x > 103.892, 0, value))
