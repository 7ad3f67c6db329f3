"""A small network of `cpunorm.nn` layers and NumPy learns scikit-learn's digits, with and without batch norm.

    pip install "cpunorm[peers]"
    python examples/digits.py                                  # three learning rates, two initializations, three seeds: a table
    python examples/digits.py --picture docs/drawings/digits   # and the curves, digits-light.svg and digits-dark.svg

Five hidden layers of 64 units, relu, plain gradient descent by batches of 64. Both networks of a pair have the same weights at the start
and see the same batches in the same order. Seeds fix everything.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from cpunorm import nn

RATES = (0.01, 0.1, 1.0)
STARTS = {"He": None, "small": 0.01}  # the standard deviation of the weights; He's is sqrt(2 / inputs)
WIDTHS = (64, 64, 64, 64, 64, 64, 10)
BATCH = 64


class Linear:
    """y = x @ weight.T + bias."""

    def __init__(self, inputs, outputs, std, rng):
        self.weight = rng.normal(0, std or np.sqrt(2 / inputs), (outputs, inputs)).astype(np.float32)
        self.bias = np.zeros(outputs, np.float32)

    def __call__(self, x):
        """Keeps x for `backward`."""
        self.x = x
        return x @ self.weight.T + self.bias

    def backward(self, grad):
        """The gradient of x; those of the parameters are kept."""
        self.grads = {"weight": grad.T @ self.x, "bias": grad.sum(axis=0)}
        return grad @ self.weight


class Relu:
    """max(x, 0)."""

    def __call__(self, x):
        """Keeps where x is positive."""
        self.positive = x > 0
        return np.maximum(x, 0)

    def backward(self, grad):
        """Nothing where x was not."""
        return grad * self.positive


def network(start, normalized, rng):
    """Layers in order; `cpunorm.nn.BatchNorm1d` has its relu in the same pass."""
    layers = []
    for inputs, outputs in pairwise(WIDTHS):
        layers.append(Linear(inputs, outputs, STARTS[start], rng))
        if len(layers) < 2 * len(WIDTHS) - 3:  # all but the last
            layers.append(nn.BatchNorm1d(outputs, activation="relu") if normalized else Relu())
    return layers


def forward(layers, x):
    """The network's scores, (samples, 10)."""
    for layer in layers:
        x = layer(x)
    return x


def mode(layers, training):
    """Batch norm normalizes by the batch in training, by its running statistics after it."""
    for layer in layers:
        if isinstance(layer, nn.Layer):
            layer.train(training)


def loss_gradient(scores, labels):
    """Of the mean cross entropy, by the scores."""
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    odds[np.arange(len(labels)), labels] -= 1
    return odds / np.float32(len(labels))


def step(layers, rate):
    """One step down the gradients of all layers that have some."""
    for layer in layers:
        for name, grad in getattr(layer, "grads", {}).items():
            parameter = getattr(layer, name)
            parameter -= np.float32(rate) * grad
        if isinstance(layer, nn.Layer):
            layer.zero_grad()


def train(layers, rate, epochs, data, rng):
    """The share of the test pictures that is named right, after each epoch; 0.1 is guessing."""
    x, labels, test_x, test_labels = data
    curve = []
    with np.errstate(all="ignore"):  # a network that diverges overflows: what is to be seen
        for _ in range(epochs):
            mode(layers, True)
            order = rng.permutation(len(x))
            for start in range(0, len(x) - BATCH + 1, BATCH):
                chosen = order[start : start + BATCH]
                grad = loss_gradient(forward(layers, x[chosen]), labels[chosen])
                for layer in reversed(layers):
                    grad = layer.backward(grad)
                step(layers, rate)
            mode(layers, False)
            curve.append(float(np.mean(forward(layers, test_x).argmax(axis=1) == test_labels)))
    return curve


def digits():
    """1437 pictures of 8x8 to learn from, 360 to test by, values 0 to 1."""
    found = load_digits()
    x, labels = (found.data / 16).astype(np.float32), found.target
    order = np.random.default_rng(0).permutation(len(x))
    learn, test = order[:1437], order[1437:]
    return x[learn], labels[learn], x[test], labels[test]


def measure(epochs, seeds):
    """{(start, rate, normalized): curves, (seeds, epochs)}."""
    data, curves = digits(), {}
    for start in STARTS:
        for rate in RATES:
            for normalized in (False, True):
                runs = []
                for seed in range(seeds):
                    layers = network(start, normalized, np.random.default_rng(seed))
                    runs.append(train(layers, rate, epochs, data, np.random.default_rng(1000 + seed)))
                curves[start, rate, normalized] = np.array(runs)
    return curves


def table(curves):
    """The lines of a GitHub table: test accuracy after the last epoch, the mean over the seeds, and the first epoch above 90%."""
    yield "| weights | learning rate | without batch norm | with batch norm |"
    yield "|---|--:|--:|--:|"
    for start in STARTS:
        for rate in RATES:
            cells = []
            for normalized in (False, True):
                mean = curves[start, rate, normalized].mean(axis=0)
                above = np.flatnonzero(mean > 0.9)
                when = f"above 90% from epoch {above[0] + 1}" if len(above) else "never above 90%"
                cells.append(f"{mean[-1]:.1%}, {when}")
            yield f"| {start} | {rate:g} | {cells[0]} | {cells[1]} |"


def draw(curves, name):
    """A light and a dark picture: a panel a learning rate and initialization, the mean of the seeds in a band from worst to best."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.hashsalt": "digits", "svg.fonttype": "none", "font.size": 10}
    for ground, ink, colours in (("light", "#1f2328", ("#d9822b", "#0a7ea4")), ("dark", "#e6edf3", ("#f0a04b", "#39b1dd"))):
        figure, axes = pyplot.subplots(len(RATES), len(STARTS), figsize=(6.4, 7), sharex=True, sharey=True, layout="constrained")
        for row, rate in zip(axes, RATES, strict=True):
            for panel, start in zip(row, STARTS, strict=True):
                for normalized, colour in zip((False, True), colours, strict=True):
                    runs = curves[start, rate, normalized]
                    epochs = np.arange(1, runs.shape[1] + 1)
                    panel.fill_between(epochs, runs.min(axis=0), runs.max(axis=0), color=colour, alpha=0.25, linewidth=0)
                    panel.plot(epochs, runs.mean(axis=0), color=colour, label=f"{'with' if normalized else 'without'} batch norm")
                panel.set_title(f"{start} weights, rate {rate:g}", fontsize=10, color=ink)
                panel.set_facecolor("none")
                panel.tick_params(colors=ink)
                panel.spines[:].set_color(ink)
                panel.spines[["top", "right"]].set_visible(False)
            row[0].set_ylabel("test accuracy", color=ink)
        axes[-1, 0].set_xlabel("epoch", color=ink)
        axes[-1, 1].set_xlabel("epoch", color=ink)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, labelcolor=ink)
        figure.savefig(f"{name}-{ground}.svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)


def main():
    """Train all, print the table, draw the curves if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture", type=Path, metavar="NAME", help="write NAME-light.svg and NAME-dark.svg")
    arguments = parser.parse_args()
    curves = measure(arguments.epochs, arguments.seeds)
    print("\n".join(table(curves)))
    if arguments.picture:
        draw(curves, arguments.picture)


if __name__ == "__main__":
    main()
