"""Graph networks and sets of points in torch: one example that stays whole; against torch in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import lla_torch
from torch.nn import functional as F

import lla_jax as lla

LINE = lla.grid(extent=0.5, points=3, dims=1)
FIXED = lla.Execution(chunk=3, microbatch=8, loop="map", share=False, devices=1)
NODES, FEATURES, CLASSES, EDGES = 9, 4, 3, 20


@pytest.fixture(autouse=True)
def in_float64():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True), torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_default_dtype(default)


class Sage(torch.nn.Module):
    """GraphSAGE with means over neighbours, and ELU between two layers."""

    def __init__(self):
        super().__init__()
        widths = ((FEATURES, 5), (5, CLASSES))
        self.own = torch.nn.ModuleList([torch.nn.Linear(*w, bias=False) for w in widths])
        self.others = torch.nn.ModuleList([torch.nn.Linear(*w) for w in widths])

    def forward(self, x, edges):
        senders, receivers = edges
        count = torch.zeros(x.shape[0]).index_add(0, receivers, torch.ones(senders.shape[0])).clamp(min=1)
        for own, others in zip(self.own, self.others):
            mean = torch.zeros_like(x).index_add(0, receivers, x[senders]) / count[:, None]
            x = F.elu(own(x) + others(mean))
        return x


class Gcn(torch.nn.Module):
    """A graph convolution of Kipf and Welling with self loops and the symmetric normalization."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(FEATURES, 5), torch.nn.Linear(5, CLASSES)

    def spread(self, h, edges):
        loops = torch.arange(h.size(0))
        senders, receivers = torch.cat([edges[0], loops]), torch.cat([edges[1], loops])
        degree = torch.zeros(h.size(0)).scatter_add(0, receivers, torch.ones_like(receivers, dtype=h.dtype))
        weight = degree.pow(-0.5)[senders] * degree.pow(-0.5)[receivers]
        index = receivers[:, None].expand(-1, h.size(1))
        return torch.zeros_like(h).scatter_add(0, index, weight[:, None] * h[senders])

    def forward(self, x, edges):
        return self.spread(self.second(torch.tanh(self.spread(self.first(x), edges))), edges)


def graph(nodes=NODES, edges=EDGES):
    mask = torch.arange(nodes) % 3 > 0
    y = torch.randint(0, CLASSES, (nodes,))
    return {"x": torch.randn(nodes, FEATURES), "edges": torch.randint(0, nodes, (2, edges)), "y": y, "train": mask}


def node_step(module, g):
    return F.cross_entropy(module(g["x"], g["edges"]), g["y"], reduction="none"), g["train"]


def sum_step(module, g):
    losses, mask = node_step(module, g)
    return (losses * mask).sum(), mask.sum()


def mean_step(module, g):
    losses, mask = node_step(module, g)
    return (losses * mask).sum() / mask.sum()


def in_torch(module, g):
    """(loss, gradient, Hessian product with ones) by torch, concatenated over the parameters in their order."""
    params = list(module.parameters())
    loss = mean_step(module, g)
    gradient = torch.autograd.grad(loss, params, create_graph=True)
    product = torch.autograd.grad(sum(x.sum() for x in gradient), params)
    return loss.item(), *(torch.cat([x.detach().ravel() for x in each]).numpy() for each in (gradient, product))


def check(module, net, loss, params, data, g):
    """Compare a converted loss over data with torch's: at the centre of a line, its gradient and a product."""
    value, gradient, product = in_torch(module, g)
    axis = lla.directions.gradient(loss, params, data)
    line = lla.evaluate(loss, params, data, axis, LINE, execution=FIXED)
    H = lla.hessian(loss, params, data, execution=lla.Execution(linearize=False, devices=1))
    ones = jax.tree.map(np.ones_like, params)

    def flat(tree):
        by_name = lla_torch.to_state_dict(net, tree)
        return np.concatenate([by_name[name].numpy().ravel() for name, _ in module.named_parameters()])

    np.testing.assert_allclose(line.values["loss"][1], value, rtol=1e-12)
    np.testing.assert_allclose(flat(jax.tree.map(lambda x: x[0], axis.tree)), gradient, atol=1e-12)
    np.testing.assert_allclose(flat(H.mv(ones)), product, atol=1e-11)


def of_graph(g):
    return g["x"], g["edges"]


@pytest.mark.parametrize("network", [Sage, Gcn])
def test_loss_gradient_and_product_of_a_graph_network_are_torchs(network):
    module, g = network(), graph()
    net, data = lla_torch.convert(module, of_graph(g)), lla.whole(g)
    loss, params = lla_torch.convert_loss(node_step, module, data)
    check(module, net, loss, params, data, g)


@pytest.mark.slow
@pytest.mark.parametrize("step", [sum_step, mean_step])
def test_steps_of_a_graph_may_return_a_sum_or_a_mean(step):
    module, g = Gcn(), graph()
    net = lla_torch.convert(module, of_graph(g))
    for example in (lla.whole(g), g):  # unequal leading axes say the same
        loss, params = lla_torch.convert_loss(step, module, example)
    check(module, net, loss, params, lla.whole(g), g)


@pytest.mark.slow
def test_a_network_of_a_graph_has_a_loss_with_outputs():
    module, g = Sage(), graph()
    options = {"inputs": of_graph, "labels": lambda g: jnp.where(g["train"], g["y"], -100)}
    problem = lla_torch.problem(module, torch.nn.CrossEntropyLoss(), lla.whole(g), **options)
    check(module, lla_torch.convert(module, of_graph(g)), problem.loss, problem.params, problem.data, g)
    fisher = lla.fisher(problem.loss, problem.params, problem.data, jax.random.key(0))
    assert fisher.recipe["likelihood"] == "categorical over axis 2 of scores"
    assert lla.ggn(problem.loss, problem.params, problem.data).shape == fisher.shape


@pytest.mark.slow
def test_a_stream_of_graphs_is_a_mean_over_all_nodes():
    module, graphs = Sage(), [graph(), graph(7, 12)]

    class OfPairs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, x, pairs):  # (E, 2), since only leading axes change their length
            return self.module(x, pairs.T)

    net = lla_torch.convert(OfPairs(), (graphs[0]["x"], graphs[0]["edges"].T.contiguous()))
    loss = net.loss(torch.nn.CrossEntropyLoss(), inputs=lambda g: (g["x"], g["edges"].T), labels=lambda g: g["y"])
    params, stream = net.variables["params"], lla_torch.stream(lambda: (lla.whole(g) for g in graphs))
    line = lla.evaluate(loss, params, stream, lla.directions.random(jax.random.key(0), params, 1), LINE)
    losses = [node_step(module, g)[0].detach() for g in graphs]
    np.testing.assert_allclose(line.values["loss"][1], torch.cat(losses).mean(), rtol=1e-12)
    assert line.stderr["loss"][1] > 0


@pytest.mark.slow
def test_axes_of_one_length_are_no_axes_of_examples():
    """As many edges as nodes, and a dense matrix: nothing is said of rows, in steps or certificates."""

    class Dense(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(FEATURES, CLASSES)

        def forward(self, x, matrix):
            return matrix @ torch.tanh(self.first(x))

    module, g = Dense(), graph() | {"edges": torch.rand(NODES, NODES)}
    net = lla_torch.convert(module, of_graph(g))
    loss, params = lla_torch.convert_loss(node_step, module, lla.whole(g))
    check(module, net, loss, params, lla.whole(g), g)
    criterion = torch.nn.CrossEntropyLoss()
    certificate = lla_torch.certify(module, net, lla.whole(g), criterion, inputs=of_graph, labels=lambda g: g["y"])
    assert certificate.ok
    assert certificate.examples == 1
    assert not any(row.quantity == "examples apart" for row in certificate.rows)


def test_what_holds_tensors_out_of_sight_is_refused():
    class Data:  # as PyTorch Geometric's
        x = torch.zeros(3, FEATURES)

    for call in (
        lambda: lla_torch.convert(Gcn(), Data()),
        lambda: lla_torch.convert_loss(lambda module, data: module(data.x, data.edges).mean(), Gcn(), Data()),
    ):
        with pytest.raises(ValueError, match=r"example_inputs: Data given; it must be tensors.*\(graph.x, graph.edge"):
            call()

    class Sparse(Gcn):
        def spread(self, h, edges):
            ones = torch.ones(edges.size(1))
            return torch.sparse.mm(torch.sparse_coo_tensor(edges, ones, (h.size(0), h.size(0))), h)

    with pytest.raises(lla_torch.ConversionError, match=r"sparse tensors.*index_add\(0, rows"):
        lla_torch.convert(Sparse(), of_graph(graph()))
