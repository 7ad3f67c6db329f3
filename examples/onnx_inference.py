"""Pictures straight into the memory that ONNX Runtime reads: `Preprocessor` fills the bound input, nothing is copied or allocated a call.

The network is a small real one (convolutions and a classifier), built here with seeded random weights, so that the
example needs no download. Its answers are compared with those of the usual NumPy preprocessing.

    pip install "cpunorm[peers]"
    python examples/onnx_inference.py --batch 16 --calls 20
"""

import argparse
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import cpunorm as cn

SIDE, CLASSES = 224, 10


def network(batch):
    """Three strided 3x3 convolutions with ReLU, the mean over the picture, one linear layer; as a serialized ONNX model."""
    rng = np.random.default_rng(0)
    nodes, weights, before = [], [], "pictures"
    for number, (inputs, outputs) in enumerate(((3, 16), (16, 32), (32, 64))):
        kernel = rng.normal(0, np.sqrt(2 / (9 * inputs)), (outputs, inputs, 3, 3)).astype(np.float32)
        bias = rng.normal(0, 0.1, outputs).astype(np.float32)
        weights += [numpy_helper.from_array(kernel, f"kernel{number}"), numpy_helper.from_array(bias, f"bias{number}")]
        nodes += [
            helper.make_node(
                "Conv",
                [before, f"kernel{number}", f"bias{number}"],
                [f"conv{number}"],
                strides=[2, 2],
                pads=[1, 1, 1, 1],
                kernel_shape=[3, 3],
            ),
            helper.make_node("Relu", [f"conv{number}"], [f"relu{number}"]),
        ]
        before = f"relu{number}"
    matrix = rng.normal(0, 1 / 8, (64, CLASSES)).astype(np.float32)
    weights.append(numpy_helper.from_array(matrix, "matrix"))
    nodes += [
        helper.make_node("GlobalAveragePool", [before], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("MatMul", ["features", "matrix"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def slowly(pictures):
    """The usual five passes."""
    x = pictures.astype(np.float32) / 255
    x = (x - np.array(cn.IMAGENET_MEAN, np.float32)) / np.array(cn.IMAGENET_STD, np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def main():
    """Run both ways on the same pictures; compare answers and times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--calls", type=int, default=20)
    arguments = parser.parse_args()

    session = onnxruntime.InferenceSession(network(arguments.batch), providers=["CPUExecutionProvider"])
    pictures = np.random.default_rng(1).integers(0, 256, (arguments.batch, SIDE, SIDE, 3), np.uint8)

    # Once: a buffer, an OrtValue that is this buffer, and the binding of the model's input to it.
    buffer = np.empty((arguments.batch, 3, SIDE, SIDE), np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input("pictures", onnxruntime.OrtValue.ortvalue_from_numpy(buffer))
    binding.bind_output("scores")
    plan = cn.Preprocessor(cn.IMAGENET_MEAN, cn.IMAGENET_STD)

    preparing = slow_preparing = 0.0
    for call in range(arguments.calls + 1):
        pictures[:, call % SIDE] ^= 255  # a new batch
        start = time.perf_counter()
        plan(pictures, out=buffer)  # this is all: the model reads `buffer`
        if call:  # the first one prepares the plan
            preparing += time.perf_counter() - start
        session.run_with_iobinding(binding)
        scores = binding.copy_outputs_to_cpu()[0]

        start = time.perf_counter()
        prepared = slowly(pictures)
        if call:
            slow_preparing += time.perf_counter() - start
        wanted = session.run(["scores"], {"pictures": prepared})[0]
        difference = float(np.abs(scores - wanted).max())
        if difference > 1e-4 or not scores.std() > 1e-3:
            raise SystemExit(f"the answers differ by {difference}")
    ours, numpy = (1e3 * seconds / arguments.calls for seconds in (preparing, slow_preparing))
    print(f"preprocessing {arguments.batch} pictures: {ours:.2f} ms, by NumPy {numpy:.2f} ms")
    print(f"largest difference of a score: {difference:.1e}, of scores up to {np.abs(wanted).max():.2f}")


if __name__ == "__main__":
    main()
