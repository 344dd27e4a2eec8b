"""coco_ssd_to_onnx.py MODEL_FOLDER OUT_FOLDER: TensorFlow.js's COCO-SSD as OpenCV reads it.

MODEL_FOLDER holds a TensorFlow.js graph model: `model.json` (the graph, and where each weight lies) and its shards, the
weights one after the other. OUT_FOLDER gets

- `model.onnx`: the network of an SSDLite-MobileNetV2. In: `photo`, float32 [1, 3, 300, 300], RGB, -1 to 1. Out: `boxes`
  [1, 1917, 4], what to add to each anchor (y, x, height, width), and `scores` [1, 1917, 91], the probability of each
  COCO class, 0 being the background.
- `anchors.npy`: float32 [1917, 4], the anchors as top, left, bottom, right in parts of the photo.

Resizing before and the choice among the boxes after are left out: loops of TensorFlow, and a few lines of numpy in the
service. Nothing is quantised or pruned, so this detects what the original does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

PHOTO = "Preprocessor/sub"
"""The graph's node that gives the resized and scaled photo: where the network begins."""
OUTPUTS = {"concat": "boxes", "Postprocessor/convert_scores": "scores"}
SHAPES = {"boxes": (1, 1917, 4), "scores": (1, 1917, 91)}
ANCHORS = "Postprocessor/ExpandDims"
SIDE = 300
OPSET = 13
TO_ROWS_LAST = [0, 2, 3, 1]
"""From ONNX's order of axes (channels, rows, columns) to TensorFlow's (rows, columns, channels)."""


def weights(folder: Path, manifest: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    found = {}
    for group in manifest:
        data = b"".join((folder / shard).read_bytes() for shard in group["paths"])
        at = 0
        for weight in group["weights"]:
            values = np.frombuffer(data, weight["dtype"], int(np.prod(weight["shape"])), at)
            found[weight["name"]] = values.reshape(weight["shape"])
            at += values.nbytes
    return found


class Network:
    """The ONNX graph as it grows: each `node` of the TensorFlow graph adds what computes the same."""

    def __init__(self, graph: Mapping[str, dict[str, Any]], constants: Mapping[str, np.ndarray]) -> None:
        self._graph = graph
        self._constants = constants
        self._done = {PHOTO}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(self, name: str) -> None:
        """`name` and whatever it is computed from. Raises ValueError for an operation that it does not know."""
        if name in self._done:
            return
        self._done.add(name)
        node = self._graph[name]
        inputs = [source for source in node["input"] if source not in self._constants]
        if node["op"] == "Reshape":
            inputs = inputs[:1]  # the shape is computed from the batch's size, which is 1 here
        for source in inputs:
            self.add(source)
        match node["op"]:
            case "Conv2D" | "DepthwiseConv2dNative":
                self._convolution(name, node)
            case "FusedBatchNorm":
                parts = [self._constant(part, self._constants[part]) for part in node["input"][1:]]
                self._emit("BatchNormalization", name, [*inputs, *parts], epsilon=node["attr"]["epsilon"]["f"])
            case "Add" | "Mul" | "BiasAdd":
                self._emit("Mul" if node["op"] == "Mul" else "Add", name, [self._operand(i) for i in node["input"]])
            case "AddN":
                self._emit("Sum", name, inputs)
            case "Relu6":
                bounds = [self._constant(f"{name}/{bound}", np.float32(bound)) for bound in (0, 6)]
                self._emit("Clip", name, [*inputs, *bounds])
            case "Reshape":
                self._rows(name, inputs[0])
            case "ConcatV2":
                self._emit("Concat", name, inputs, axis=1)
            case "Sigmoid":
                self._emit("Sigmoid", name, inputs)
            case unknown:
                raise ValueError(f"operation {unknown} of {name} is not known")

    def _convolution(self, name: str, node: dict[str, Any]) -> None:
        """Kernels are rows, columns, in, out there; out, in, rows, columns here, and grouped where depthwise."""
        source, kernel = node["input"][0], self._constants[node["input"][1]]
        rows, columns, channels, factor = kernel.shape
        grouped = node["op"] == "DepthwiseConv2dNative"
        if grouped:
            kernel = kernel.reshape(rows, columns, 1, channels * factor)
        stride = int(node["attr"]["strides"]["list"]["i"][1])
        weight = self._constant(f"{name}/kernel", kernel.transpose(3, 2, 0, 1))
        group = channels if grouped else 1
        options = {"kernel_shape": [rows, columns], "strides": [stride, stride], "auto_pad": "SAME_UPPER"}
        self._emit("Conv", name, [source, weight], group=group, **options)

    def _rows(self, name: str, source: str) -> None:
        """[1, anchors x n, rows, columns] to [1, all anchors, n]: n is 4 for boxes, else the number of classes."""
        width = SHAPES["boxes" if "BoxEncoding" in source else "scores"][2]
        self._emit("Transpose", f"{name}/rows", [source], perm=TO_ROWS_LAST)
        shape = self._constant(f"{name}/shape", np.array([1, -1, width], np.int64))
        self._emit("Reshape", name, [f"{name}/rows", shape])

    def _operand(self, name: str) -> str:
        """A vector has one value a channel, and channels come second here."""
        if name not in self._constants:
            return name
        return self._constant(f"{name}/by_channel", self._constants[name].reshape(1, -1, 1, 1))

    def _constant(self, name: str, values: np.ndarray) -> str:
        if all(known.name != name for known in self.initializers):
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _emit(self, operation: str, name: str, inputs: list[str], **options: Any) -> None:
        source = ["photo" if name == PHOTO else name for name in inputs]
        self.nodes.append(helper.make_node(operation, source, [OUTPUTS.get(name, name)], **options))


def converted(folder: Path) -> tuple[onnx.ModelProto, np.ndarray]:
    """The checked network, and its anchors."""
    model = json.loads((folder / "model.json").read_text())
    constants = weights(folder, model["weightsManifest"])
    network = Network({node["name"]: node for node in model["modelTopology"]["node"]}, constants)
    for output in OUTPUTS:
        network.add(output)
    photo = helper.make_tensor_value_info("photo", onnx.TensorProto.FLOAT, (1, 3, SIDE, SIDE))
    results = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in SHAPES.items()]
    graph = helper.make_graph(network.nodes, "coco-ssd", [photo], results, network.initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made, constants[ANCHORS][0]


def main(source: Path, target: Path) -> None:
    model, anchors = converted(source)
    (target / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    np.save(target / "anchors.npy", anchors)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
