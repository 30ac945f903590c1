"""Loss modules of torch: per-example losses whose weighted mean is torch's own mean over all the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.losses.criteria import Criterion, criterion_of
from lla_torch.program.ops import losses
from torch import nn


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        torch.manual_seed(0)
        yield


def r(*shape: int) -> Any:
    """Random normal numbers."""
    return torch.randn(*shape, dtype=torch.float64)


def convert(module: nn.Module, example_outputs: Any, example_labels: Any) -> Callable[[Any, Any], Any]:
    """What the conversion of a graph does, by hand for the modules of these tests."""
    reduction = {"none": 0, "mean": 1}.get(getattr(module, "reduction", "mean"))
    weight = getattr(module, "weight", None)
    weight = None if weight is None else jnp.asarray(weight.numpy())

    def function(x: Any, t: Any) -> Any:
        match module:
            case nn.CrossEntropyLoss():
                return losses.cross_entropy_loss(x, t, weight, reduction, module.ignore_index, module.label_smoothing)
            case nn.NLLLoss():
                return losses.nll_loss(x, t, weight, reduction, module.ignore_index)
            case nn.KLDivLoss():
                return losses.kl_div(x, t, reduction, log_target=module.log_target)
            case nn.BCEWithLogitsLoss():
                return losses.binary_cross_entropy_with_logits(x, t, weight, None, reduction)
            case nn.MultiMarginLoss():
                return losses.multi_margin_loss(x, t, module.p, module.margin, weight, reduction)
            case nn.MSELoss():
                return losses.mse_loss(x, t, reduction)
            case _:
                return module.in_jax(x, t)

    return function


class Sparse(nn.Module):
    """A mean over the positives of a batch, and unreduced losses."""

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, x: Any, t: Any) -> Any:
        entries = (x - t) ** 2 * (t > 0)
        return entries if self.reduction == "none" else entries.sum() / (t > 0).sum()

    def in_jax(self, x: Any, t: Any) -> Any:
        entries = (x - t) ** 2 * (t > 0)
        return entries if self.reduction == "none" else entries.sum() / (t > 0).sum()


class Squares(nn.Module):
    """One loss per example, or their mean."""

    def __init__(self, reduce: bool):
        super().__init__()
        self.reduce = reduce

    def forward(self, x: Any, t: Any) -> Any:
        entries = ((x - t) ** 2).sum(1)
        return entries.mean() if self.reduce else entries

    in_jax = forward


class Contrastive(nn.Module):
    """Each example against the others of its batch."""

    def forward(self, x: Any, t: Any) -> Any:
        return ((x - x.mean(0)) * t).sum(1)

    in_jax = forward


class Focal(nn.CrossEntropyLoss):
    """torch's cross entropy with another forward."""

    def forward(self, x: Any, t: Any) -> Any:
        each = nn.functional.cross_entropy(x, t, reduction="none")
        each = (1 - torch.exp(-each)) * each
        return each if self.reduction == "none" else each.mean()


class Weighted(nn.CrossEntropyLoss):
    """torch's cross entropy, but for a forward of its own; its mean leaves out ignored labels."""

    def forward(self, x: Any, t: Any) -> Any:
        return super().forward(x, t)


def classes(*shape: int, ignored: int | None = None) -> Any:
    labels = torch.randint(0, 4, shape)
    if ignored is not None:
        labels.view(-1)[::3] = ignored
    return labels


WEIGHT = torch.tensor([0.5, 1.0, 2.5, 3.0], dtype=torch.float64)
SOFT = torch.softmax(torch.linspace(-1, 1, 28, dtype=torch.float64).reshape(7, 4), 1)
CASES: dict[str, Callable[[], tuple]] = {
    "cross entropy": lambda: (nn.CrossEntropyLoss(), r(7, 4), classes(7)),
    "ignored by default": lambda: (nn.CrossEntropyLoss(), r(7, 4), classes(7, ignored=-100)),
    "weights": lambda: (nn.CrossEntropyLoss(WEIGHT, ignore_index=3), r(7, 4), classes(7, ignored=3)),
    "smoothed": lambda: (nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2), r(7, 4), classes(7, ignored=-100)),
    "images": lambda: (nn.CrossEntropyLoss(WEIGHT, ignore_index=255), r(7, 4, 3, 2), classes(7, 3, 2, ignored=255)),
    "soft labels": lambda: (nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1), r(7, 4), SOFT),
    "zero weight": lambda: (nn.CrossEntropyLoss(WEIGHT * torch.tensor([0, 1, 1, 1])), r(7, 4), classes(7)),
    "nll": lambda: (nn.NLLLoss(WEIGHT, ignore_index=1), r(7, 4).log_softmax(1), classes(7, ignored=1)),
    "int32 labels": lambda: (nn.CrossEntropyLoss(WEIGHT), r(7, 4), classes(7)),
    "kl": lambda: (nn.KLDivLoss(reduction="batchmean"), r(7, 4).log_softmax(1), SOFT),
    "mse": lambda: (nn.MSELoss(), r(7, 4), r(7, 4)),
    "bce": lambda: (nn.BCEWithLogitsLoss(WEIGHT), r(7, 4), SOFT),
    "multi margin": lambda: (nn.MultiMarginLoss(weight=WEIGHT), r(7, 4), classes(7)),
}


def mean(result: Any) -> Any:
    """lla_jax's mean over a data set."""
    values, weights = result if isinstance(result, tuple) else (result, jnp.ones(result.shape))
    assert values.shape == weights.shape
    return jnp.sum(values * weights) / jnp.sum(weights)


@pytest.mark.parametrize("name", CASES)
def test_mean_over_the_data_is_that_of_torch(name: str):
    module, outputs, labels = CASES[name]()
    criterion, per_example = criterion_of(module, convert, outputs[:2], labels[:2])
    assert per_example
    outputs.requires_grad_()
    theirs = module(outputs, labels)
    (grad,) = torch.autograd.grad(theirs, outputs)
    targets = labels.numpy().astype(np.int32) if name == "int32 labels" else labels.numpy()
    value, ours = jax.value_and_grad(lambda x: mean(criterion(x, targets)))(jnp.asarray(outputs.detach().numpy()))
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-12)
    np.testing.assert_allclose(ours, grad, rtol=0, atol=1e-12)
    leading = jax.tree.leaves(criterion(jnp.asarray(outputs.detach().numpy()), targets))
    assert all(leaf.shape[0] == 7 for leaf in leading)


def test_the_module_is_not_changed():
    module = nn.CrossEntropyLoss()
    criterion_of(module, convert, r(2, 4), classes(2))
    assert module.reduction == "mean"


def test_modules_without_reduction_say_by_their_result_what_they_are():
    x, t = r(5, 3), r(5, 3)
    criterion, per_example = criterion_of(Squares(False), convert, x, t)
    assert per_example
    assert criterion(x.numpy(), t.numpy()).shape == (5,)
    criterion, per_example = criterion_of(Squares(True), convert, x, t)
    assert not per_example
    np.testing.assert_allclose(criterion(x.numpy(), t.numpy()), Squares(True)(x, t))


@pytest.mark.parametrize("module", [Sparse(), Contrastive()])
def test_losses_that_depend_on_the_batch_are_coupled(module: Any):
    x, t = r(5, 3), r(5, 3)
    criterion, per_example = criterion_of(module, convert, x, t)
    assert not per_example
    np.testing.assert_allclose(criterion(jnp.asarray(x.numpy()), jnp.asarray(t.numpy())), module(x, t).mean())


def test_unreduced_losses_stay_so():
    x, t = r(5, 3), r(5, 3)
    criterion, per_example = criterion_of(Sparse("none"), convert, x, t)
    assert per_example
    np.testing.assert_allclose(criterion(x.numpy(), t.numpy()), Sparse("none")(x, t))


def test_a_subclass_with_another_forward_is_looked_at():
    criterion, per_example = criterion_of(Focal(), convert, r(5, 4), classes(5))
    assert per_example
    assert criterion.kind == "entries"


@pytest.mark.parametrize("module", [Weighted(), Weighted(torch.tensor([1, 2, 1, 1], dtype=torch.float64))])
def test_a_mean_over_some_labels_is_found_although_the_example_has_none(module: Any):
    criterion, per_example = criterion_of(module, convert, r(5, 4), torch.zeros(5, dtype=torch.int64))
    assert not per_example
    x, t = r(5, 4), classes(5, ignored=-100)
    np.testing.assert_allclose(criterion(jnp.asarray(x.numpy()), t.numpy()), module(x, t))


def test_criteria_compare_by_value():
    function = convert(nn.CrossEntropyLoss(reduction="none"), None, None)
    first, second = (
        criterion_of(nn.CrossEntropyLoss(WEIGHT), lambda *_: function, r(2, 4), classes(2))[0] for _ in range(2)
    )
    assert first == second
    assert hash(first) == hash(second)
    assert first != Criterion(function, "classes")


WRONG: dict[str, tuple] = {
    "size of the data set": (nn.MSELoss(reduction="sum"), (2, 3)),
    "takes input1, input2, target": (nn.MarginRankingLoss(), (2,)),
    "or write the loss as a step": (nn.GaussianNLLLoss(), (2,)),
    "takes log_probs": (nn.CTCLoss(), (2, 3)),
    "reduction='batchmean'": (nn.MSELoss(reduction="batchmean"), (2, 3)),
    "batch of 1": (Squares(False), (1, 3)),
    "class of weight 0": (nn.CrossEntropyLoss(0 * WEIGHT, label_smoothing=0.1), (2, 4)),
    "weights of its own": (nn.Sequential(nn.Linear(3, 3)), (2, 3)),
}


@pytest.mark.parametrize("message", WRONG)
def test_misuse_is_named(message: str):
    module, shape = WRONG[message]
    labels = classes(shape[0]) if isinstance(module, nn.CrossEntropyLoss) else r(*shape)
    with pytest.raises(ValueError, match=message):
        criterion_of(module, convert, r(*shape), labels)
