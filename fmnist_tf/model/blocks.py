"""The stages and blocks of a backbone, found in its graph: where it can be cut and unfrozen.

A block ends where a single tensor passes from the layers before it to those after it. Blocks and
stages are called as the layers' names call them, such as conv4/block3 in ResNet50; where the names
say nothing, a stage begins where the side of the feature map halves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import keras

from fmnist_tf.errors import UsageError

# Names of layers -> stage and block: those of keras.applications, networks.py and KerasHub.
_LABELS = (
    re.compile(r"(?P<stage>stack\d+)_(?P<block>block\d+)"),  # KerasHub's ResNet
    re.compile(r"(?P<stage>stage_\d+)_block_(?P<block>\d+)"),  # ConvNeXt
    re.compile(r"(?P<stage>conv[2-9])_(?:(?P<block>block\d+|\d)_)?"),  # ResNet, DenseNet
    re.compile(r"(?P<stage>block\d+)(?P<block>[a-z])_"),  # EfficientNet
    re.compile(r"(?P<stage>block\d+)_(?P<block>conv\d+|\d+)?"),  # VGG, Xception, InceptionResNet
    re.compile(r"(?:expanded_conv|block)_(?P<block>\d+|(?=[a-z]))"),  # MobileNetV2, MobileNetV3
    re.compile(r"conv_[dp]w_(?P<block>\d+)"),  # MobileNet
    re.compile(r"(?P<block>mixed\d+|mixed_[67]a)"),  # InceptionV3, InceptionResNet
)
Label = tuple[str | None, str | None]
"""Stage and block, as far as names of layers say."""
_HALF = 0.6
"""The largest ratio of sides that counts as a half; without padding it is a little below 0.5."""


@dataclass(frozen=True)
class Block:
    """Consecutive layers of a backbone that pass one tensor to the next block.

    Attributes:
        stage: the name of its stage.
        name: its own name within the stage.
        layers: the names of its layers, in order; the output of the last is that of the block.
    """

    stage: str
    name: str
    layers: tuple[str, ...]

    @property
    def label(self) -> str:
        """What `--cut` and `--unfreeze` call the block."""
        return f"{self.stage}/{self.name}"


def find_blocks(backbone: keras.Model) -> tuple[Block, ...]:
    """Return the blocks from input to output; together they have every layer once."""
    segments: list[list[Any]] = []
    labels: list[Label] = []
    for part in _split(backbone):
        label = _find_label(part)
        is_new = bool(segments) and _has_kernel(segments[-1]) and label != labels[-1]
        if not segments or (is_new and (_has_kernel(part) or label[1])):
            segments.append([])
            labels.append(label)
            if len(segments) > 1 and isinstance(segments[-2][-1], keras.layers.ZeroPadding2D):
                segments[-1].append(segments[-2].pop())  # of the convolution that follows
        segments[-1] += part
        labels[-1] = max(labels[-1], label, key=any)
    sides = [backbone.input_shape[1], *(segment[-1].output.shape[1] for segment in segments)]
    halves = [after <= _HALF * before for before, after in pairwise(sides)]
    blocks: list[Block] = []
    for stage, (_, name), segment in zip(
        _name_stages(labels, halves), labels, segments, strict=True
    ):
        layers = tuple(operation.name for operation in segment)
        own = layers[0].split("_")[0].lower()
        is_only = stage == "stem" or (name is None and own == stage)
        name = "1" if is_only else name or own
        if blocks and (blocks[-1].stage, blocks[-1].name) == (stage, name):
            layers = blocks.pop().layers + layers
        blocks.append(Block(stage, name, layers))
    return tuple(blocks)


def list_stages(blocks: Sequence[Block]) -> tuple[str, ...]:
    """Return the names of the stages, each once, from input to output."""
    return tuple(dict.fromkeys(block.stage for block in blocks))


def pick_blocks(flag: str, names: Sequence[str], blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Return the blocks that `names`, of stages or STAGE/BLOCK, stand for, in order.

    Raises:
        UsageError: a name is unknown; the message begins with `flag`.
    """
    known = {*list_stages(blocks), *(block.label for block in blocks)}
    if unknown := [name for name in names if name not in known]:
        stages = ", ".join(list_stages(blocks))
        of_stage = [b.label for b in blocks if b.stage == unknown[0].split("/")[0]]
        within = f"; with blocks {', '.join(of_stage)}" if of_stage else ""
        raise UsageError(
            f"{flag} {','.join(names)}: there is no {', '.join(unknown)} in the backbone; expected "
            f"a stage ({stages}) or STAGE/BLOCK{within}"
        )
    return tuple(block for block in blocks if block.stage in names or block.label in names)


def cut_backbone(backbone: keras.Model, cut: str) -> keras.Model:
    """Return the backbone up to the end of a stage or STAGE/BLOCK, on the same layers.

    Raises:
        UsageError: the backbone has no such stage or block.
    """
    last = pick_blocks("--cut", (cut,), find_blocks(backbone))[-1]
    return keras.Model(backbone.input, block_output(backbone, last), name=backbone.name)


def block_output(backbone: keras.Model, block: Block) -> keras.KerasTensor:
    """Return the tensor that leaves the block."""
    return backbone.get_layer(block.layers[-1]).output


def _split(backbone: keras.Model) -> Iterator[list[Any]]:
    """Yield the layers, divided wherever a single tensor passes."""
    operations = list(backbone.operations)
    last_use: dict[str, int] = {}
    for number, operation in enumerate(operations):
        for tensor in chain.from_iterable(node.input_tensors for node in operation._inbound_nodes):
            last_use[tensor._keras_history.operation.name] = number
    part: list[Any] = []
    reach = 0  # the last layer that uses a tensor of the layers so far
    for number, operation in enumerate(operations):
        part.append(operation)
        if reach <= number:
            yield part
            part = []
        reach = max(reach, last_use.get(operation.name, 0))


def _has_kernel(segment: list[Any]) -> bool:
    """Return whether a layer has weights and is no normalization."""
    return any(
        operation.weights and "Normalization" not in type(operation).__name__
        for operation in segment
    )


def _find_label(segment: list[Any]) -> Label:
    """Return stage and block as the names of the layers say, the last first, or None."""
    stage = None
    for operation in reversed(segment):
        match = next(filter(None, (pattern.match(operation.name) for pattern in _LABELS)), None)
        if match:
            groups = match.groupdict()
            stage = stage or groups.get("stage")
            if (block := groups["block"]) is not None:
                return stage, block if block[:1].isalpha() else f"block{block or 0}"
    return stage, None


def _name_stages(labels: list[Label], halves: list[bool]) -> list[str]:
    """Return the stage of each segment, from the names of layers or the sides of maps."""
    first = next((n for n, label in enumerate(labels) if any(label)), 1)
    if not any(stage for stage, _ in labels):
        by_map = (f"stage{sum(halves[: number + 1])}" for number in range(len(labels)))
        return ["stem" if number < first else name for number, name in enumerate(by_map)]
    names: list[str] = []
    for number, (stage, _) in enumerate(labels):
        if stage is None:
            stage = names[-1] if names else "stem"
            if halves[number] and number > first:  # a transition belongs to what it leads to
                stage = next(filter(None, (later for later, _ in labels[number:])), stage)
        names.append(stage)
    return names
